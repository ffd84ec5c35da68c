"""A run's life around its steps: start, logs, checkpoints, stops, and what goes wrong."""
