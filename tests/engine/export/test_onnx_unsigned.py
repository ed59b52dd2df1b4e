"""Weights as unsigned integers stand for the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from worker.engine.export.onnx_unsigned import make_weights_unsigned


def _network() -> onnx.ModelProto:
    """x + dequantized weights, and int32 biases that stay as they are."""
    weights = np.arange(-127, 129, dtype=np.int16).clip(-127, 127).astype(np.int8).reshape(64, 4)
    constants: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "weight": weights,
        "zeros": np.zeros(4, np.int8),
        "scale": np.array([0.5, 0.25, 2.0, 1.0], np.float32),
        "bias": np.array([7, -9, 0, 1], np.int32),
        "bias_zeros": np.zeros(4, np.int32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scale", "zeros"], ["w"], axis=1),
        helper.make_node("DequantizeLinear", ["bias", "scale", "bias_zeros"], ["b"], axis=0),
        helper.make_node("Add", ["x", "w"], ["sum"]),
        helper.make_node("Add", ["sum", "b"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 4]) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_unsigned_weights_stand_for_the_same_numbers() -> None:
    network = _network()
    before = onnxruntime.InferenceSession(network.SerializeToString()).run(None, {"x": np.ones((64, 4), np.float32)})
    make_weights_unsigned(network.graph)
    after = onnxruntime.InferenceSession(network.SerializeToString()).run(None, {"x": np.ones((64, 4), np.float32)})
    np.testing.assert_array_equal(before[0], after[0])
    kinds = {tensor.name: tensor.data_type for tensor in network.graph.initializer}
    assert kinds["weight"] == kinds["zeros"] == TensorProto.UINT8
    assert kinds["bias"] == TensorProto.INT32
