"""How much of transformers, of what exporters write of it, and of other ONNX files can be pruned and proven."""
