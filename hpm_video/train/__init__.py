"""Pre-training and fine-tuning: the loops, optimizers, mixing of clips."""
