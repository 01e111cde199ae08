"""Dependency analysis: which dimensions are coupled, which stay whole and why, and what they cost."""
