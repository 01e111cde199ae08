"""Frontends: literal tables from operators to coupling rules, and the graphs that the analysis reads."""
