"""Inputs and labels: opened, decoded, batched."""
