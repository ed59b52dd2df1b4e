"""Each operator of the table computes what ONNX Runtime computes, in the forms it had over the opsets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.engine.ingest.onnx.graphs import Array, compare, fp, ints, model, random, read, with_parameters
from worker.engine.ingest.onnx.table import TRANSLATIONS


@dataclass(frozen=True)
class Case:
    """One node: `inputs` are of the graph, `weights` initializers; both stand in the order of the node's inputs.
    `through` is an operator that first brings the input to where this one is defined."""

    kind: str
    inputs: dict[str, Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    opset: int = 17
    order: tuple[str, ...] = ()
    results: int = 1
    high: int = 2
    through: str | None = None
    tolerance: float = 1e-5

    def network(self) -> ModelProto:
        order = self.order or (*self.inputs, *self.weights)
        results = [f"y{place}" for place in range(self.results)]
        if self.through is not None:
            order = tuple("inside" if name == "x" else name for name in order)
        node = helper.make_node(self.kind, list(order), results, "part", **self.attributes)
        network = with_parameters(node, self.inputs, self.weights, opset=self.opset)
        if self.through is not None:
            network.graph.node.insert(0, helper.make_node(self.through, ["x"], ["inside"], "before"))
        return network


X = {"x": ["N", 4, 5]}
IMAGE = {"x": ["N", 4, 7, 6]}
SAMPLED = {"x": ["N", 4, 7, 6], "grid": ["N", 5, 3, 2]}
TWO = {"x": ["N", 4, 5], "y": ["N", 4, 5]}
INTEGERS = {"x": (TensorProto.INT64, ["N", 6])}
TRUTHS = {"x": (TensorProto.BOOL, ["N", 6]), "y": (TensorProto.BOOL, ["N", 6])}
NUMBERS = {"x": (TensorProto.INT64, ["N", 6]), "y": (TensorProto.INT64, ["N", 6])}

CASES = [
    *(
        Case(kind, X)
        for kind in [
            "Abs",
            "Atan",
            "Ceil",
            "Cos",
            "Cosh",
            "Erf",
            "Exp",
            "Floor",
            "Identity",
            "Neg",
            "Reciprocal",
            "Relu",
            "Round",
            "Sigmoid",
            "Sign",
            "Sin",
            "Sinh",
            "Softplus",
            "Softsign",
            "Tan",
            "Tanh",
            "HardSwish",
            "Asinh",
            "IsNaN",
            "IsInf",
            "HardSigmoid",
            "Elu",
            "Selu",
            "Celu",
            "LeakyRelu",
            "ThresholdedRelu",
            "Softmax",
            "LogSoftmax",
            "Hardmax",
            "Shrink",
            "Clip",
        ]
    ),
    *(Case(kind, X, through="Sigmoid") for kind in ("Acos", "Asin", "Atanh", "Log", "Sqrt")),
    Case("Acosh", X, through="Cosh"),
    Case("ReduceLogSum", X, {"axes": [1]}, through="Sigmoid"),
    Case("Mish", X, opset=18),
    Case("Swish", X, opset=24),
    Case("Swish", X, {"alpha": 1.5}, opset=24),
    Case("Gelu", X, opset=20),
    Case("Gelu", X, {"approximate": "tanh"}, opset=20),
    Case("Not", {"x": (TensorProto.BOOL, ["N", 6])}),
    Case("BitwiseNot", INTEGERS, opset=18, high=99),
    *(
        Case(kind, TWO)
        for kind in [
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Max",
            "Min",
            "Sum",
            "Mean",
            "Equal",
            "Greater",
            "Less",
            "GreaterOrEqual",
            "LessOrEqual",
        ]
    ),
    *(
        Case(kind, X, weights={"w": fp(0.3)}, order=order)
        for kind in ["Add", "Sub", "Mul", "Div", "Max", "Min", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]
        for order in (("x", "w"), ("w", "x"))
    ),
    *(Case(kind, X, weights={"table": random(5)}) for kind in ["Add", "Sub", "Mul", "Div", "Max", "Min"]),
    Case("Add", {"x": ["N"]}, weights={"w": random(1, 1)}),
    *(Case(kind, TRUTHS) for kind in ["And", "Or", "Xor"]),
    *(Case(kind, NUMBERS, opset=18, high=99) for kind in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]),
    Case("Div", INTEGERS, weights={"w": ints(-4)}, high=99),
    Case("Mod", INTEGERS, weights={"w": ints(-5)}, high=99),
    Case("Mod", X, {"fmod": 1}, weights={"w": fp(0.3)}),
    Case("Pow", X, weights={"w": fp(2.0)}),
    Case("Pow", X, weights={"w": ints(3)[0]}, opset=13),
    Case("Pow", X, weights={"w": fp(2.0)}, order=("w", "x")),
    Case("Equal", INTEGERS, weights={"w": ints(1)[0]}),
    *(Case(kind, X, opset=7) for kind in ["Elu", "Selu", "LeakyRelu", "Softplus", "HardSigmoid"]),
    Case("HardSigmoid", X, {"alpha": 1 / 6, "beta": 0.5}),
    Case("Selu", X, {"alpha": 1.5, "gamma": 1.2}),
    Case("Elu", X, {"alpha": 0.5}),
    Case("Celu", X, {"alpha": 2.0}),
    Case("LeakyRelu", X, {"alpha": 0.2}),
    Case("Shrink", X, {"lambd": 0.4, "bias": 0.4}),
    Case("PRelu", IMAGE, weights={"slope": random(4, 1, 1)}),
    Case("PRelu", IMAGE, weights={"slope": random(1)}),
    Case("PRelu", X, weights={"slope": random(5)}),
    Case("PRelu", IMAGE, weights={"slope": random(4, 7, 1)}),
    Case("Clip", X, {"min": -0.5, "max": 0.5}, opset=7),
    Case("Clip", X, weights={"low": fp(-0.5), "high": fp(0.5)}),
    Case("Clip", X, weights={"high": fp(0.5)}, order=("x", "", "high")),
    Case("Softmax", IMAGE, {"axis": 1}, opset=11),
    Case("Softmax", IMAGE, {"axis": 1}, opset=13),
    Case("LogSoftmax", X, {"axis": -2}),
    Case("LogSoftmax", X, {"axis": 1}, opset=11),
    Case("Hardmax", IMAGE, {"axis": 1}),
    Case("Dropout", X, {"ratio": 0.3}, opset=7),
    Case("Dropout", X, weights={"ratio": fp(0.3)}, opset=13),
    Case("Cast", X, {"to": TensorProto.INT64}),
    Case("Cast", INTEGERS, {"to": TensorProto.FLOAT}, high=9),
    Case("Cast", X, {"to": TensorProto.BOOL}),
    Case("CastLike", {"x": ["N", 6], "y": (TensorProto.INT64, ["N", 6])}, opset=15),
    Case("Where", {"c": (TensorProto.BOOL, ["N", 4, 5]), **TWO}),
    Case("Where", {"c": (TensorProto.BOOL, ["N", 4, 5]), **X}, weights={"low": fp(-3)}),
    # Convolutions and products
    Case("Conv", IMAGE, {"kernel_shape": [3, 3]}, {"c.weight": random(6, 4, 3, 3), "c.bias": random(6)}),
    Case("Conv", IMAGE, {"pads": [1, 0, 2, 1], "strides": [2, 1]}, {"c.weight": random(6, 4, 3, 3)}),
    Case("Conv", IMAGE, {"group": 2, "dilations": [2, 1]}, {"c.weight": random(6, 2, 3, 3)}),
    Case("Conv", IMAGE, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"c.weight": random(6, 4, 3, 3)}),
    Case("Conv", IMAGE, {"auto_pad": "SAME_LOWER"}, {"c.weight": random(6, 4, 2, 2)}),
    Case("Conv", IMAGE, {"auto_pad": "VALID"}, {"c.weight": random(6, 4, 3, 3)}, opset=7),
    Case("Conv", X, {"pads": [1, 1]}, {"c.weight": random(6, 4, 3)}),
    Case("Conv", {"x": ["N", 2, 4, 5, 3]}, {"pads": [1] * 6}, {"c.weight": random(3, 2, 3, 3, 3)}),
    Case("Conv", IMAGE, {"group": 4}, {"c.weight": random(4, 1, 3, 3)}),
    Case("ConvTranspose", IMAGE, {"strides": [2, 2]}, {"c.weight": random(4, 6, 3, 3), "c.bias": random(6)}),
    Case(
        "ConvTranspose",
        IMAGE,
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"c.weight": random(4, 3, 3, 3)},
    ),
    Case("ConvTranspose", IMAGE, {"strides": [2, 2], "pads": [0, 1, 1, 0]}, {"c.weight": random(4, 3, 3, 3)}),
    Case("ConvTranspose", IMAGE, {"strides": [2, 2], "output_shape": [14, 12]}, {"c.weight": random(4, 3, 3, 3)}),
    Case("ConvTranspose", IMAGE, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"c.weight": random(4, 3, 3, 3)}),
    Case("ConvTranspose", X, {"group": 2}, {"c.weight": random(4, 3, 3)}),
    Case("Gemm", {"x": ["N", 4]}, {"transB": 1}, {"fc.weight": random(6, 4), "fc.bias": random(6)}),
    Case("Gemm", {"x": ["N", 4]}, {}, {"w": random(4, 6), "b": random(1, 6)}),
    Case("Gemm", {"x": ["N", 4]}, {"alpha": 0.5, "beta": 2.0}, {"w": random(4, 6), "b": random(6)}),
    Case("Gemm", {"x": ["N", 4]}, {"beta": 0.0}, {"w": random(4, 6), "b": random(6)}),
    Case("Gemm", {"x": ["N", 4]}, {}, {"w": random(4, 6), "b": fp(0.5)}),
    Case("MatMul", X, {}, {"w": random(5, 3)}),
    Case("MatMul", {"x": ["N", 4, 5], "y": ["N", 5, 3]}),
    Case("MatMul", X, {}, {"w": random(6, 4)}, order=("w", "x")),
    Case("MatMul", X, {}, {"w": random(2, 1, 5, 3)}),
    Case("Einsum", TWO, {"equation": "nij, nkj -> nik"}),
    Case("Transpose", X, {"perm": [0, 2, 1]}),
    Case("Transpose", X, {"perm": [2, 0, 1]}),
    # Normalizations
    Case(
        "BatchNormalization",
        IMAGE,
        {"epsilon": 1e-3, "momentum": 0.8},
        {
            "b.weight": random(4),
            "b.bias": random(4),
            "b.running_mean": random(4),
            "b.running_var": random(4) ** 2 + 0.5,
        },
    ),
    Case(
        "BatchNormalization",
        {"x": ["N", 4]},
        {},
        {"s": random(4), "o": random(4), "m": random(4), "v": random(4) ** 2 + 0.5},
        opset=9,
    ),
    Case("LayerNormalization", X, {}, {"n.weight": random(5), "n.bias": random(5)}),
    Case("LayerNormalization", X, {"axis": 1}, {"n.weight": random(4, 5)}),
    Case("LayerNormalization", X, {"axis": -2, "epsilon": 1e-3}, {"w": random(5), "b": random(5)}),
    Case("InstanceNormalization", IMAGE, {"epsilon": 1e-3}, {"n.weight": random(4), "n.bias": random(4)}),
    Case("GroupNormalization", IMAGE, {"num_groups": 2}, {"w": random(2), "b": random(2)}, opset=18),
    Case("GroupNormalization", IMAGE, {"num_groups": 2}, {"w": random(4), "b": random(4)}, opset=21),
    Case("RMSNormalization", X, {}, {"w": random(5)}, opset=23),
    Case("LpNormalization", X),
    Case("LpNormalization", X, {"p": 1, "axis": 1}),
    Case("LRN", IMAGE, {"size": 3, "alpha": 0.1, "beta": 0.5, "bias": 2.0}),
    Case("MeanVarianceNormalization", IMAGE, {"axes": [1, 2, 3]}),
    # Pools
    Case("MaxPool", IMAGE, {"kernel_shape": [2, 3]}),
    Case("MaxPool", IMAGE, {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "strides": [2, 2]}),
    Case("MaxPool", IMAGE, {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}, opset=10),
    Case("MaxPool", IMAGE, {"kernel_shape": [2, 2], "dilations": [2, 2]}, opset=12),
    Case("MaxPool", IMAGE, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("MaxPool", X, {"kernel_shape": [2]}, opset=8),
    Case("AveragePool", IMAGE, {"kernel_shape": [2, 3]}),
    Case("AveragePool", IMAGE, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", IMAGE, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", IMAGE, {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "strides": [2, 1]}),
    Case("AveragePool", IMAGE, {"kernel_shape": [3, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1}),
    Case("AveragePool", IMAGE, {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    Case("AveragePool", IMAGE, {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}, opset=19),
    Case("AveragePool", X, {"kernel_shape": [2]}),
    Case("GlobalAveragePool", IMAGE),
    Case("GlobalMaxPool", IMAGE),
    Case("GlobalLpPool", IMAGE, {"p": 2}),
    # Reductions
    *(
        Case(kind, X, {"axes": [1], "keepdims": keep}, opset=11)
        for kind in [
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSumExp",
            "ReduceSumSquare",
        ]
        for keep in (0, 1)
    ),
    Case("ReduceSum", X, {}, {"axes": ints(-1)}, opset=13),
    Case("ReduceMean", X, {}, {"axes": ints(1, 2)}, opset=18),
    Case("ReduceMax", X, {"keepdims": 0}, {"axes": ints(2)}, opset=18),
    Case("ReduceProd", X, {"axes": [1, 2]}),
    Case("ReduceProd", X, {"axes": [-1], "keepdims": 0}),
    Case("ReduceSum", INTEGERS, {}, {"axes": ints(1)}, high=9),
    Case("ArgMax", X, {"axis": 1}),
    Case("ArgMax", X, {"axis": -1, "keepdims": 0}, opset=11),
    Case("ArgMin", X, {"axis": 2, "keepdims": 0}),
    Case("TopK", X, {"axis": -1}, {"k": ints(3)}, results=2),
    Case("TopK", X, {"axis": 1, "largest": 0}, {"k": ints(2)}, results=2),
    Case("CumSum", X, {}, {"axis": ints(1)[0]}),
    Case("CumSum", X, {"exclusive": 1}, {"axis": ints(-1)}),
    Case("CumSum", X, {"reverse": 1, "exclusive": 1}, {"axis": ints(2)}),
    # Sizes
    Case("Reshape", X, {}, {"shape": ints(0, -1)}),
    Case("Reshape", X, {}, {"shape": ints(-1, 2, 10)}),
    Case("Reshape", X, {}, {"shape": ints(-1, 5)}),
    Case("Reshape", X, {"allowzero": 1}, {"shape": ints(-1, 20)}, opset=14),
    Case("Flatten", IMAGE),
    Case("Flatten", IMAGE, {"axis": 2}),
    Case("Flatten", IMAGE, {"axis": -1}),
    Case("Squeeze", {"x": ["N", 1, 4, 1]}, {"axes": [1]}, opset=11),
    Case("Squeeze", {"x": ["N", 1, 4, 1]}, {}, {"axes": ints(-1)}),
    Case("Squeeze", {"x": ["N", 1, 4, 1]}),
    Case("Unsqueeze", X, {"axes": [0, 4]}, opset=11),
    Case("Unsqueeze", X, {}, {"axes": ints(-1, 1)}),
    Case("Expand", {"x": ["N", 1, 5]}, {}, {"shape": ints(4, 1)}),
    Case("Expand", {"x": ["N", 1, 5]}, {}, {"shape": ints(1, 1, 3, 1)}),
    Case("Tile", X, {}, {"repeats": ints(1, 2, 3)}),
    Case("Tile", X, {}, {"repeats": ints(2, 1, 1)}),
    Case("DepthToSpace", {"x": ["N", 8, 3, 4]}, {"blocksize": 2}),
    Case("DepthToSpace", {"x": ["N", 8, 3, 4]}, {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", {"x": ["N", 3, 4, 6]}, {"blocksize": 2}),
    # Parts
    Case("Concat", TWO, {"axis": 1}),
    Case("Concat", TWO, {"axis": -1}),
    Case("Split", IMAGE, {"axis": 1, "split": [1, 3]}, opset=11, results=2),
    Case("Split", IMAGE, {"axis": 1}, {"sizes": ints(3, 1)}, results=2),
    Case("Split", IMAGE, {"axis": 1}, results=2),
    Case("Split", IMAGE, {"axis": 2, "num_outputs": 3}, opset=18, results=3),
    Case("Slice", IMAGE, {"starts": [1, 0], "ends": [3, -1], "axes": [1, 3]}, opset=9),
    Case("Slice", IMAGE, {}, {"s": ints(1, 0), "e": ints(99, 5), "a": ints(2, -1), "t": ints(2, 1)}),
    Case("Slice", IMAGE, {}, {"s": ints(-1), "e": ints(-99), "a": ints(3), "t": ints(-1)}),
    Case("Slice", IMAGE, {}, {"s": ints(-2), "e": ints(0), "a": ints(3), "t": ints(-2)}),
    Case("Slice", IMAGE, {}, {"s": ints(0, 2), "e": ints(2**31 - 1, 2**62), "a": ints(0, 1)}, opset=11),
    Case("Gather", X, {"axis": 1}, {"i": ints(2)[0]}),
    Case("Gather", X, {"axis": 2}, {"i": ints(-1)[0]}),
    Case("Gather", X, {"axis": 1}, {"i": ints(1, 2, 3)}),
    Case("Gather", X, {"axis": 1}, {"i": ints(0, 3, -2)}),
    Case("Gather", X, {"axis": 2}, {"i": ints(0, 3, 2, 2).reshape(2, 2)}),
    Case("Gather", INTEGERS, {}, {"table": random(7, 4)}, order=("table", "x"), high=7),
    Case("Gather", INTEGERS, {}, {"table": random(7)}, order=("table", "x"), high=7),
    Case("Gather", INTEGERS, {"axis": 1}, {"table": random(3, 7, 2)}, order=("table", "x"), high=7),
    Case("GatherElements", {"x": ["N", 6], "i": (TensorProto.INT64, ["N", 3])}, {"axis": 1}, high=6),
    Case("GatherND", {"x": ["N", 4, 5], "i": (TensorProto.INT64, ["N", 3, 2])}, high=2),
    Case(
        "ScatterND", {"x": ["N", 4]}, {}, {"i": ints(0, 2, 1, 0).reshape(2, 2), "u": random(2)}, order=("x", "i", "u")
    ),
    *(
        Case(
            "ScatterElements",
            {"x": ["N", 6], "i": (TensorProto.INT64, ["N", places]), "u": ["N", places]},
            {"axis": 1, **reduction},
            opset=opset,
            high=6,
        )
        for places, reduction, opset in [
            (1, {}, 11),
            (1, {"reduction": "none"}, 16),
            (3, {"reduction": "add"}, 16),
            (3, {"reduction": "mul"}, 17),
            (3, {"reduction": "max"}, 18),
            (3, {"reduction": "min"}, 18),
        ]
    ),
    Case("Trilu", {"x": ["N", 5, 5]}),
    Case("Trilu", {"x": ["N", 4, 5]}, {"upper": 0}, {"k": ints(1)[0]}),
    Case("Pad", IMAGE, {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.5}, opset=10),
    Case("Pad", IMAGE, {}, {"pads": ints(0, 1, 1, 2, 0, 0, 0, 1)}),
    Case("Pad", IMAGE, {}, {"pads": ints(0, 0, 1, 2, 0, 0, 0, 1), "value": fp(-2.0)}),
    Case("Pad", IMAGE, {"mode": "reflect"}, {"pads": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
    Case("Pad", IMAGE, {"mode": "edge"}, {"pads": ints(0, 0, 0, 2, 0, 0, 0, 1)}),
    Case("Pad", {"x": ["N", 6]}, {"mode": "reflect"}, {"pads": ints(0, 2, 0, 1)}),
    Case("Pad", X, {"mode": "reflect"}, {"pads": ints(0, 0, 2, 0, 0, 3)}),
    Case("Pad", IMAGE, {"mode": "edge"}, {"pads": ints(0, 0, 2, 0, 0, 0, 1, 0)}),
    Case("Pad", X, {"mode": "wrap"}, {"pads": ints(2, 1), "axes": ints(2)}, order=("x", "pads", "", "axes"), opset=19),
    Case("Pad", IMAGE, {}, {"pads": ints(0, 0, -1, 2, 0, 0, 0, -1)}),
    Case("OneHot", INTEGERS, {}, {"depth": ints(7)[0], "values": np.array([0.5, 2.0], np.float32)}, high=7),
    Case("OneHot", INTEGERS, {"axis": 1}, {"depth": ints(7), "values": np.array([0, 1], np.float32)}, high=7),
    # Images
    Case("Resize", IMAGE, {"mode": "nearest"}, {"s": np.array([1, 1, 2, 2], np.float32)}, opset=10),
    Case("Resize", IMAGE, {"mode": "linear"}, {"s": np.array([1, 1, 2, 1.5], np.float32)}, opset=10),
    *(
        Case(
            "Resize",
            IMAGE,
            {"mode": mode, "coordinate_transformation_mode": way, **more},
            {"s": np.array([1, 1, *scales], np.float32)},
            order=("x", "", "s"),
        )
        for mode, more in (
            ("nearest", {"nearest_mode": "floor"}),
            ("nearest", {"nearest_mode": "round_prefer_ceil"}),
            ("nearest", {}),
            ("linear", {}),
            ("cubic", {}),
            ("cubic", {"exclude_outside": 1, "cubic_coeff_a": -0.5}),
        )
        for way in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        for scales in ((2, 2), (0.5, 1.7))
    ),
    Case(
        "Resize",
        IMAGE,
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
        {"s": np.array([1, 1, 1.3, 0.7], np.float32)},
        order=("x", "", "s"),
        opset=19,
    ),
    Case("Resize", IMAGE, {"mode": "linear", "axes": [2, 3]}, {"z": ints(9, 5)}, order=("x", "", "", "z"), opset=18),
    *(
        Case("GridSample", SAMPLED, {"mode": mode, "padding_mode": outside, "align_corners": corners}, opset=16)
        for mode in ("bilinear", "nearest", "bicubic")
        for outside in ("zeros", "border", "reflection")
        for corners in (0, 1)
    ),
    Case("GridSample", SAMPLED, {"mode": "cubic"}, opset=20),
    Case("GridSample", {"x": ["N", 4, 7, 6, 5], "grid": ["N", 5, 3, 2, 3]}, {"mode": "linear"}, opset=20),
    Case("Resize", X, {"mode": "linear"}, {"s": np.array([1, 1, 2], np.float32)}, order=("x", "", "s")),
    Case("Upsample", IMAGE, {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 3.0]}, opset=7),
    Case("Upsample", IMAGE, {"mode": "linear"}, {"s": np.array([1, 1, 2, 2], np.float32)}, opset=9),
    # Attention
    Case("Attention", {"q": ["N", 2, 4, 8], "k": ["N", 2, 6, 8], "v": ["N", 2, 6, 8]}, opset=23),
    Case("Attention", {"q": ["N", 2, 4, 8], "k": ["N", 2, 4, 8], "v": ["N", 2, 4, 8]}, {"is_causal": 1}, opset=23),
    Case(
        "Attention",
        {"q": ["N", 4, 16], "k": ["N", 6, 8], "v": ["N", 6, 8]},
        {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.3},
        opset=23,
    ),
    Case(
        "Attention",
        {"q": ["N", 2, 4, 8], "k": ["N", 2, 6, 8], "v": ["N", 2, 6, 8]},
        weights={"mask": random(4, 6)},
        opset=23,
    ),
]


def _name(case: Case) -> str:
    said = " ".join(f"{name}={value}" for name, value in case.attributes.items())
    return f"{case.kind} {said} opset {case.opset}"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_an_operator_gives_what_onnx_runtime_gives(case: Case, tmp_path: Path) -> None:
    network = case.network()
    program, subject = read(network, tmp_path)
    assert program.format == "onnx"
    compare(network, subject, case.high, case.tolerance)


RECURRENT: dict[str, tuple[str, int, dict[str, Any]]] = {
    "lstm": ("LSTM", 4, {}),
    "lstm in reverse": ("LSTM", 4, {"direction": "reverse"}),
    "lstm both ways": ("LSTM", 4, {"direction": "bidirectional"}),
    "gru": ("GRU", 3, {"linear_before_reset": 1}),
    "gru both ways": ("GRU", 3, {"linear_before_reset": 1, "direction": "bidirectional"}),
    "rnn": ("RNN", 1, {}),
    "rnn in reverse": ("RNN", 1, {"direction": "reverse"}),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("opset", [7, 14, 22])
def test_a_recurrent_layer_gives_what_onnx_runtime_gives(name: str, bias: bool, opset: int, tmp_path: Path) -> None:
    network = recurrent_network(name, bias, opset)
    _, subject = read(network, tmp_path)
    compare(network, subject)


def recurrent_network(name: str, bias: bool, opset: int) -> ModelProto:
    """Over [time, batch, features], from states that are an input, with all its outputs."""
    kind, gates, attributes = RECURRENT[name]
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    hidden, features = 5, 4
    weights = {
        "W": random(directions, gates * hidden, features, seed=1),
        "R": random(directions, gates * hidden, hidden, seed=2),
        **({"B": random(directions, 2 * gates * hidden, seed=3)} if bias else {}),
    }
    states = ["h0", "c0"] if kind == "LSTM" else ["h0"]
    outputs = ["Y", *(f"{state}.last" for state in states)]
    turn = [helper.make_node("Transpose", ["x"], ["sequence"], perm=[1, 0, 2])]
    turn += [helper.make_node("Transpose", [f"{state}.given"], [state], perm=[1, 0, 2]) for state in states]
    operands = ["sequence", "W", "R", "B" if bias else "", "", *states]
    layer = helper.make_node(kind, operands, outputs, "/rnn/layer", hidden_size=hidden, **attributes)
    # Y is [time, directions, batch, hidden]: the batch comes first for the comparison.
    back = [helper.make_node("Transpose", ["Y"], ["y"], perm=[2, 0, 1, 3])]
    back += [helper.make_node("Transpose", [name], [f"{name}.y"], perm=[1, 0, 2]) for name in outputs[1:]]
    return model(
        [*turn, layer, *back],
        {"x": ["N", 6, features], **{f"{state}.given": ["N", directions, hidden] for state in states}},
        ["y", *(f"{name}.y" for name in outputs[1:])],
        weights,
        opset=opset,
    )


def _sizes_of_the_batch() -> list[NodeProto]:
    """Sizes taken from the input, as exporters write them, and values made from them."""
    return [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["batch"]),
        helper.make_node("Unsqueeze", ["batch", "first"], ["batch.1"]),
        helper.make_node("Concat", ["batch.1", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["x", "wanted"], ["y.reshape"]),
        helper.make_node(
            "ConstantOfShape", ["wanted"], ["twos"], value=numpy_helper.from_array(np.full(1, 2.0, np.float32))
        ),
        helper.make_node("Add", ["y.reshape", "twos"], ["y.full"]),
        helper.make_node("Range", ["zero", "batch", "one"], ["counted"]),
        helper.make_node("Cast", ["counted"], ["counted.float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counted.float", "first.1"], ["column"]),
        helper.make_node("Add", ["x", "column"], ["y.range"]),
        helper.make_node("Expand", ["token", "wanted"], ["tokens"]),
        helper.make_node("Concat", ["y.reshape", "tokens"], ["y.token"], axis=1),
        helper.make_node("Size", ["x"], ["count"]),
        helper.make_node("Div", ["count", "batch"], ["each"]),
        helper.make_node("Unsqueeze", ["each", "first"], ["each.1"]),
        helper.make_node("Concat", ["minus", "each.1"], ["flat"], axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["y.flat"]),
        helper.make_node("Slice", ["x", "zeros.1", "batch.1"], ["y.slice"]),
        helper.make_node("EyeLike", ["square"], ["eye"], dtype=TensorProto.FLOAT),
        helper.make_node("MatMul", ["y.reshape", "eye"], ["y.eye"]),
        helper.make_node("NonZero", ["square"], ["places"]),
        helper.make_node("Gather", ["places", "zero"], ["row"]),
        helper.make_node("Gather", ["y.reshape", "row"], ["y.nonzero"], axis=2),
    ]


def test_sizes_of_the_batch_become_arithmetic_on_it(tmp_path: Path) -> None:
    outputs = ["reshape", "full", "range", "token", "flat", "slice", "eye", "nonzero"]
    weights = {
        "zero": ints(0)[0],
        "one": ints(1)[0],
        "first": ints(0),
        "first.1": ints(1),
        "rest": ints(2, 3),
        "minus": ints(-1),
        "zeros.1": ints(0),
        "square": np.tri(2, 3, dtype=np.float32),
        "token": random(1, 1, 3),
    }
    weights["square"] = np.tri(3, 3, dtype=np.float32) - np.eye(3, dtype=np.float32)
    weights["square"][2, 1] = 0
    network = model(_sizes_of_the_batch(), {"x": ["N", 6]}, [f"y.{name}" for name in outputs], weights)
    program, subject = read(network, tmp_path)
    compare(network, subject)
    assert "token" in program.parameters


ELSEWHERE = {"Constant", "ConstantOfShape", "EyeLike", "GRU", "LSTM", "NonZero", "RNN", "Range", "Shape", "Size"}


def test_every_operator_of_the_table_is_compared() -> None:
    assert set(TRANSLATIONS) == {case.kind for case in CASES} | ELSEWHERE
