"""Operators that need no rule of their own: those that work value by value, and other names of operators."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from worker.engine.graph.labels import Value
from worker.engine.graph.ops.call import Call
from worker.engine.graph.ops.elementwise import broadcast
from worker.engine.graph.shapes import sizes_of

aten = torch.ops.aten

ELEMENTWISE = (
    "__and__.Scalar",
    "__iand__.Tensor",
    "__ior__.Tensor",
    "__ixor__.Tensor",
    "__or__.Scalar",
    "__or__.Tensor",
    "__xor__.Scalar",
    "__xor__.Tensor",
    "_conj.default",
    "acos.default",
    "acosh.default",
    "addcdiv.default",
    "angle.default",
    "asin.default",
    "asinh.default",
    "atan.default",
    "atanh.default",
    "bitwise_and.Scalar",
    "bitwise_left_shift.Tensor",
    "bitwise_left_shift.Tensor_Scalar",
    "bitwise_or.Scalar",
    "bitwise_right_shift.Tensor",
    "bitwise_right_shift.Tensor_Scalar",
    "bitwise_xor.Scalar",
    "bitwise_xor.Tensor",
    "clamp.Tensor",
    "clamp_max.Tensor",
    "clamp_min.Tensor",
    "complex.default",
    "conj.default",
    "conj_physical.default",
    "copysign.Scalar",
    "copysign.Tensor",
    "cosh.default",
    "deg2rad.default",
    "digamma.default",
    "div.Scalar_mode",
    "erfc.default",
    "erfinv.default",
    "exp2.default",
    "fill.Tensor",
    "float_power.Tensor_Scalar",
    "float_power.Tensor_Tensor",
    "floor_divide.Scalar",
    "fmax.default",
    "fmin.default",
    "fmod.Tensor",
    "frac.default",
    "heaviside.default",
    "hypot.default",
    "i0.default",
    "imag.default",
    "isclose.default",
    "isfinite.default",
    "isneginf.default",
    "isposinf.default",
    "isreal.default",
    "ldexp.Tensor",
    "lerp.Tensor",
    "lgamma.default",
    "log10.default",
    "log2.default",
    "logaddexp2.default",
    "logical_xor.default",
    "logit.default",
    "nextafter.default",
    "polar.default",
    "positive.default",
    "rad2deg.default",
    "real.default",
    "remainder.Scalar_Tensor",
    "remainder.Tensor",
    "resolve_conj.default",
    "resolve_neg.default",
    "round.decimals",
    "rsub.Tensor",
    "sgn.default",
    "signbit.default",
    "sinc.default",
    "sinh.default",
    "special_entr.default",
    "special_erfcx.default",
    "special_i0e.default",
    "special_log_ndtr.default",
    "special_ndtr.default",
    "special_ndtri.default",
    "special_xlog1py.default",
    "trunc.default",
    "xlogy.Scalar_Other",
    "xlogy.Scalar_Self",
    "xlogy.Tensor",
)
"""Those beside the rows of the table: every operand is broadcast to the result, and each of its values is made of the
values at its place. Those that write into their first operand follow from these (`in_place`)."""

_NAMES: dict[str, OpOverload] = {
    "absolute.default": aten.abs.default,
    "arccos.default": aten.acos.default,
    "arccosh.default": aten.acosh.default,
    "arcsin.default": aten.asin.default,
    "arcsinh.default": aten.asinh.default,
    "arctan.default": aten.atan.default,
    "arctan2.default": aten.atan2.default,
    "arctanh.default": aten.atanh.default,
    "clip.Tensor": aten.clamp.Tensor,
    "clip.default": aten.clamp.default,
    "concat.default": aten.cat.default,
    "concatenate.default": aten.cat.default,
    "divide.Scalar": aten.div.Scalar,
    "divide.Scalar_mode": aten.div.Scalar_mode,
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
    "linalg_matmul.default": aten.matmul.default,
    "moveaxis.int": aten.movedim.int,
    "moveaxis.intlist": aten.movedim.intlist,
    "multiply.Scalar": aten.mul.Scalar,
    "multiply.Tensor": aten.mul.Tensor,
    "negative.default": aten.neg.default,
    "new_empty.default": aten.new_zeros.default,
    "not_equal.Scalar": aten.ne.Scalar,
    "not_equal.Tensor": aten.ne.Tensor,
    "special_digamma.default": aten.digamma.default,
    "special_erf.default": aten.erf.default,
    "special_erfc.default": aten.erfc.default,
    "special_erfinv.default": aten.erfinv.default,
    "special_exp2.default": aten.exp2.default,
    "special_expit.default": aten.sigmoid.default,
    "special_expm1.default": aten.expm1.default,
    "special_gammaln.default": aten.lgamma.default,
    "special_i0.default": aten.i0.default,
    "special_log1p.default": aten.log1p.default,
    "special_log_softmax.default": aten.log_softmax.int,
    "special_logit.default": aten.logit.default,
    "special_logsumexp.default": aten.logsumexp.default,
    "special_psi.default": aten.digamma.default,
    "special_round.default": aten.round.decimals,
    "special_sinc.default": aten.sinc.default,
    "special_softmax.default": aten.softmax.int,
    "special_xlogy.default": aten.xlogy.Tensor,
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


def in_place(name: str) -> OpOverload | None:
    """`relu_.default` of `relu.default`: what takes the same and writes its result into its first operand, if there is
    such an operator."""
    packet, overload = name.split(".")
    wanted = _taken(getattr(getattr(aten, packet), overload))
    written = getattr(aten, f"{packet}_", None)
    for other in written.overloads() if written is not None else ():
        found: OpOverload = getattr(written, other)
        first = found._schema.arguments[0].alias_info
        if first is not None and first.is_write and _taken(found) == wanted:
            return found
    return None


def _taken(operator: OpOverload) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in operator._schema.arguments]


ALIASES: dict[str, OpOverload] = _NAMES | {
    own.__name__: target
    for name, named in _NAMES.items()
    if (own := in_place(name)) is not None and (target := in_place(named.__name__)) is not None
}
"""Those, and what they are called where they write into their first operand."""


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
