"""Checkpoints that may be larger than memory: structure without weights, weights from mapped files, slices streamed."""
