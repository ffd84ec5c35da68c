"""Weights in and out: what files of our own and of others hold, strictly and in both directions."""
