"""Layers that range their inputs at run time, in the operators that ONNX Runtime has fast kernels for."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.defs import OpSchema
from onnxscript import ir, opset18, values

from worker.engine.graph.dynamic import MIDDLE

_op: Any = opset18


def dynamic_linear(x: Any, weight: Any, scale: Any, bias: Any) -> Any:
    """ONNX Runtime makes this one DynamicQuantizeMatMul. All of it is standard ONNX."""
    integers, own, zero = _op.DynamicQuantizeLinear(x)
    product = _op.Cast(_op.MatMulInteger(integers, weight, zero, _middle([])), to=ir.DataType.FLOAT)
    result = _op.Mul(product, _op.Mul(own, scale))
    return result if bias is None else _op.Add(result, bias)


def dynamic_lstm(
    x: Any, hidden: Any, cell: Any, weight: Any, scale: Any, state_weight: Any, state_scale: Any, bias: Any
) -> Any:
    """The operator of ONNX Runtime: ONNX itself has none."""
    sides, size = state_weight.shape[0], state_weight.shape[1]
    zeros = _middle([sides, 4 * size])
    return _DYNAMIC_LSTM(
        x, weight, state_weight, bias, None, hidden, cell, None, scale, zeros, state_scale, zeros,
        hidden_size=size, direction="bidirectional" if sides == 2 else "forward",
    )  # fmt: skip


def _middle(shape: list[int]) -> Any:
    return _op.Constant(value=ir.tensor(np.full(shape, MIDDLE, np.uint8)))


def _schema() -> OpSchema:
    """The part of the operator's signature that is used."""
    optional = OpSchema.FormalParameterOption.Optional
    floats, integers, lengths = "tensor(float)", "tensor(uint8)", "tensor(int32)"
    inputs = [
        OpSchema.FormalParameter("X", floats),
        OpSchema.FormalParameter("W", integers),
        OpSchema.FormalParameter("R", integers),
        OpSchema.FormalParameter("B", floats, param_option=optional),
        OpSchema.FormalParameter("sequence_lens", lengths, param_option=optional),
        OpSchema.FormalParameter("initial_h", floats, param_option=optional),
        OpSchema.FormalParameter("initial_c", floats, param_option=optional),
        OpSchema.FormalParameter("P", floats, param_option=optional),
        OpSchema.FormalParameter("W_scale", floats),
        OpSchema.FormalParameter("W_zero_point", integers),
        OpSchema.FormalParameter("R_scale", floats),
        OpSchema.FormalParameter("R_zero_point", integers),
    ]
    outputs = [OpSchema.FormalParameter(name, floats) for name in ("Y", "Y_h", "Y_c")]
    attributes = [
        OpSchema.Attribute("hidden_size", OpSchema.AttrType.INT, required=True),
        OpSchema.Attribute("direction", OpSchema.AttrType.STRING, required=True),
    ]
    return OpSchema("DynamicQuantizeLSTM", "com.microsoft", 1, inputs=inputs, outputs=outputs, attributes=attributes)


_DYNAMIC_LSTM: Any = values.Op(values.Opset("com.microsoft", 1), "DynamicQuantizeLSTM", _schema())
