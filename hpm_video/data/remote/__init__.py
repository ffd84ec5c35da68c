"""Lists and videos that are elsewhere: their names, the cache, and how they come into it."""
