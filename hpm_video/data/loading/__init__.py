"""From samples to batches, read by processes that may hang or crash without harm."""
