"""What trained models lose when they are pruned without training, beside rivals; see ``__main__.py``."""
