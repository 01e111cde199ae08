"""Measured latencies: cut an ONNX model into segments, measure them at aligned widths, predict the whole."""
