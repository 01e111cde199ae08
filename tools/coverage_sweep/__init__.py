"""Whether architectures of transformers, what exporters write of them, and other files can be pruned, and how much of them."""
