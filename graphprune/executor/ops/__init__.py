"""One literal table: operator -> the PyTorch functions that compute it."""
