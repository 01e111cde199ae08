"""Pruning inside of a training loop: any loop, any optimiser; a dense, proven model at the end."""
