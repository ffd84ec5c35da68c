"""Everything with weights, and how it is built from settings."""
