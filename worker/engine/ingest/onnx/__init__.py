"""Reading ONNX files: a graph is interpreted node by node, constants are folded, the rest becomes ATen calls."""
