"""Exports checkpoints to other projects' formats and to executable graphs."""
