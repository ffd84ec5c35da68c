"""Lists and videos at URLs: their names, the local cache, and fetching into it."""
