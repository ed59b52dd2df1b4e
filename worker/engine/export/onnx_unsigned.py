"""8-bit weights as unsigned integers around 128, for processors whose kernels for signed ones saturate.

Without VNNI, ONNX Runtime multiplies unsigned activations by signed weights with an instruction that sums two products
in 16 bits and clips there (vpmaddubsw); for unsigned weights it uses one that does not. The numbers that the integers
stand for are the same.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from worker.engine.graph.dynamic import MIDDLE


def make_weights_unsigned(graph: onnx.GraphProto) -> None:
    """Rewrite every int8 initializer that a DequantizeLinear reads, and its zero points, in place."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    shifted: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        weight = tensors.get(node.input[0])
        if weight is None or weight.data_type != onnx.TensorProto.INT8:
            continue
        shifted.update((node.input[0], node.input[2]))
    for name in shifted:
        tensor = tensors[name]
        values = (numpy_helper.to_array(tensor).astype(np.int16) + MIDDLE).astype(np.uint8)
        tensor.CopyFrom(numpy_helper.from_array(values, name))
