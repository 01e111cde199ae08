"""The wing of ONNX files: read, edited, run, compared and written; the operators' rows are in ``ops``."""
