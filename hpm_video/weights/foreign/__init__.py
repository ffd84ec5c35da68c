"""Weights of others: recognised, converted both ways, with an account of every tensor."""
