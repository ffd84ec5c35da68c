"""A run's life around its steps: start, logs, checkpoints, stops, what goes wrong."""
