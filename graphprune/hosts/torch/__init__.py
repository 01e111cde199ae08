"""The wing of PyTorch modules: traced, edited, run, compared and rebuilt; the operators' rows are in ``ops``."""
