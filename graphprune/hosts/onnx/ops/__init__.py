"""What ONNX operators couple: the table, and the rows that need more than a line."""
