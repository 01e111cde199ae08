"""The embedded demo: a small trained network with a slice of its test data, so that a first run needs no download."""
