"""The translation of each ONNX operator, by family."""
