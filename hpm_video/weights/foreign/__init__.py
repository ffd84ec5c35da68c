"""Recognises weights of other projects and converts them both ways, accounting for each tensor."""
