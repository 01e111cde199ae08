"""Runtimes that run and time exported files."""
