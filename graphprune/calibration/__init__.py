"""Calibration: unlabelled inputs of the user's, in batches that fit the model, and what is learned from them."""
