"""Checkpoints in the formats of others, and as programs."""
