"""Pruning while training: quality at equal steps, and what a step costs."""
