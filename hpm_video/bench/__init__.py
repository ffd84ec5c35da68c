"""``hpm-video bench``: costs of training in time, memory, loading, multiply-adds and GPUs."""
