"""ONNX graphs as PyTorch modules: run operator by operator, with gradients; and the losses that those are of."""
