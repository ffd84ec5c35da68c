"""Self-supervised video pre-training by masked autoencoding with hard tube mining."""

__version__ = "0.1.0"
