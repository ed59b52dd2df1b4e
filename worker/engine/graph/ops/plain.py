"""Operators that need no rule of their own: those that work value by value, and other names of operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from worker.engine.graph.labels import Value
from worker.engine.graph.ops.call import Call
from worker.engine.graph.ops.elementwise import broadcast
from worker.engine.graph.shapes import sizes_of

aten = torch.ops.aten

ELEMENTWISE = (
    "__or__.Tensor",
    "__xor__.Tensor",
    "_conj.default",
    "abs_.default",
    "acos.default",
    "acosh.default",
    "add_.Scalar",
    "addcdiv.default",
    "addcmul_.default",
    "angle.default",
    "asin.default",
    "asinh.default",
    "atan.default",
    "atanh.default",
    "bitwise_and.Scalar",
    "bitwise_xor.Tensor",
    "ceil_.default",
    "celu_.default",
    "clamp.Tensor",
    "clamp_max.Tensor",
    "clamp_max_.default",
    "clamp_min.Tensor",
    "complex.default",
    "conj.default",
    "copysign.Tensor",
    "cos_.default",
    "cosh.default",
    "deg2rad.default",
    "detach_.default",
    "div_.Scalar",
    "erfc.default",
    "exp2.default",
    "exp_.default",
    "float_power.Tensor_Scalar",
    "floor_.default",
    "floor_divide.Scalar",
    "fmax.default",
    "fmin.default",
    "fmod.Tensor",
    "frac.default",
    "gelu_.default",
    "heaviside.default",
    "hypot.default",
    "imag.default",
    "isfinite.default",
    "lerp.Tensor",
    "log10.default",
    "log2.default",
    "log_.default",
    "logaddexp2.default",
    "logical_xor.default",
    "logit.default",
    "masked_fill_.Tensor",
    "mul_.Scalar",
    "neg_.default",
    "polar.default",
    "positive.default",
    "pow_.Scalar",
    "rad2deg.default",
    "real.default",
    "relu6_.default",
    "remainder.Tensor",
    "resolve_conj.default",
    "round_.default",
    "rsqrt_.default",
    "rsub.Tensor",
    "selu_.default",
    "sgn.default",
    "sin_.default",
    "sinc.default",
    "sinh.default",
    "sqrt_.default",
    "square_.default",
    "sub_.Scalar",
    "trunc.default",
    "xlogy.Tensor",
)
"""Those beside the rows of the table: every operand is broadcast to the result, and each of its values is made of the
values at its place."""

ALIASES: dict[str, Any] = {
    "absolute.default": aten.abs.default,
    "arccos.default": aten.acos.default,
    "arccosh.default": aten.acosh.default,
    "arcsin.default": aten.asin.default,
    "arcsinh.default": aten.asinh.default,
    "arctan.default": aten.atan.default,
    "arctan2.default": aten.atan2.default,
    "arctanh.default": aten.atanh.default,
    "clip.default": aten.clamp.default,
    "clip_.default": aten.clamp_.default,
    "concat.default": aten.cat.default,
    "concatenate.default": aten.cat.default,
    "divide.Scalar": aten.div.Scalar,
    "divide.Tensor": aten.div.Tensor,
    "divide.Tensor_mode": aten.div.Tensor_mode,
    "empty.memory_format": aten.zeros.default,
    "empty_like.default": aten.zeros_like.default,
    "fix.default": aten.trunc.default,
    "ger.default": aten.outer.default,
    "greater.Scalar": aten.gt.Scalar,
    "greater.Tensor": aten.gt.Tensor,
    "greater_equal.Scalar": aten.ge.Scalar,
    "greater_equal.Tensor": aten.ge.Tensor,
    "less.Scalar": aten.lt.Scalar,
    "less.Tensor": aten.lt.Tensor,
    "less_equal.Scalar": aten.le.Scalar,
    "less_equal.Tensor": aten.le.Tensor,
    "moveaxis.int": aten.movedim.int,
    "moveaxis.intlist": aten.movedim.intlist,
    "multiply.Scalar": aten.mul.Scalar,
    "multiply.Tensor": aten.mul.Tensor,
    "multiply_.Tensor": aten.mul_.Tensor,
    "negative.default": aten.neg.default,
    "new_empty.default": aten.new_zeros.default,
    "not_equal.Scalar": aten.ne.Scalar,
    "not_equal.Tensor": aten.ne.Tensor,
    "special_expit.default": aten.sigmoid.default,
    "special_log1p.default": aten.log1p.default,
    "special_erf.default": aten.erf.default,
    "special_softmax.default": aten.softmax.int,
    "subtract.Scalar": aten.sub.Scalar,
    "subtract.Tensor": aten.sub.Tensor,
    "swapdims.default": aten.transpose.int,
    "true_divide.Scalar": aten.div.Scalar,
    "true_divide.Tensor": aten.div.Tensor,
    "unsafe_chunk.default": aten.chunk.default,
    "unsafe_split.Tensor": aten.split.Tensor,
    "unsafe_split_with_sizes.default": aten.split_with_sizes.default,
}
"""Operators that take the same arguments and do the same. Memory that is not written first comes as zeros."""


def broadcast_tensors(call: Call) -> Value:
    """All operands are expanded to one size: what meets, stays or goes together."""
    operands, sizes = call.operands("tensors"), call.results_sizes[0]
    met = broadcast(call, list(zip(operands, map(sizes_of, call.argument("tensors")), strict=True)), sizes)
    return tuple(list(met) for _ in operands)


def renamed(node: fx.Node) -> None:
    """Call the operator by the name that has rules."""
    target = ALIASES[getattr(node.target, "__name__", "")]
    taken = {argument.name for argument in target._schema.arguments}
    node.target, node.kwargs = target, {name: value for name, value in node.kwargs.items() if name in taken}
