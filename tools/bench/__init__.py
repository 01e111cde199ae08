"""What the benchmarks share: records that outlive a killed run (`records.py`), downloads (`registry.py`)."""
