"""The embedded demo: a small trained network with a slice of its test data, so that a first run needs no download."""

PIXEL_MEAN, PIXEL_STD = 0.2860, 0.3530
"""Of the training images (Fashion-MNIST), with pixels scaled to [0, 1]."""
