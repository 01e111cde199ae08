"""Calibration: what flows through a model on real inputs, as moments at the consumers of each group."""
