"""Reads and writes weights, checked strictly: our checkpoints and other projects' formats."""
