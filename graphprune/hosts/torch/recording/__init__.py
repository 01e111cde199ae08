"""A forward that is recorded as it runs, instead of being exported."""
