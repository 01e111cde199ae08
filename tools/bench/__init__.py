"""Benchmarks, each a module of its own: ``python -m tools.bench.memory``."""
