"""Videos as samples: clips for training, views for evaluation, and augmentation."""
