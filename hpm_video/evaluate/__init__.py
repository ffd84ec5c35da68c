"""What a trained model is worth: classification, probes, features, quality of mining."""
