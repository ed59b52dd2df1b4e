"""Operators that work element by element."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch._ops import OpOverload

from worker.engine.ingest.onnx.known import Known, Operand, dtype_of, shape_of, shapes_of
from worker.engine.ingest.onnx.operators.convolve import as_vector
from worker.engine.ingest.onnx.operators.merge import merge
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten

UNARY: dict[str, OpOverload] = {
    "Abs": _A.abs.default,
    "Acos": _A.acos.default,
    "Acosh": _A.acosh.default,
    "Asin": _A.asin.default,
    "Asinh": _A.asinh.default,
    "Atan": _A.atan.default,
    "Atanh": _A.atanh.default,
    "BitwiseNot": _A.bitwise_not.default,
    "Ceil": _A.ceil.default,
    "Cos": _A.cos.default,
    "Cosh": _A.cosh.default,
    "Erf": _A.erf.default,
    "Exp": _A.exp.default,
    "Floor": _A.floor.default,
    "HardSwish": _A.hardswish.default,
    "IsNaN": _A.isnan.default,
    "Log": _A.log.default,
    "Mish": _A.mish.default,
    "Neg": _A.neg.default,
    "Not": _A.logical_not.default,
    "Reciprocal": _A.reciprocal.default,
    "Relu": _A.relu.default,
    "Round": _A.round.default,
    "Sigmoid": _A.sigmoid.default,
    "Sign": _A.sign.default,
    "Sin": _A.sin.default,
    "Sinh": _A.sinh.default,
    "Softplus": _A.softplus.default,
    "Sqrt": _A.sqrt.default,
    "Tan": _A.tan.default,
    "Tanh": _A.tanh.default,
}

BINARY: dict[str, OpOverload] = {
    "Add": _A.add.Tensor,
    "And": _A.logical_and.default,
    "BitwiseAnd": _A.bitwise_and.Tensor,
    "BitwiseOr": _A.bitwise_or.Tensor,
    "BitwiseXor": _A.bitwise_xor.Tensor,
    "Equal": _A.eq.Tensor,
    "Greater": _A.gt.Tensor,
    "GreaterOrEqual": _A.ge.Tensor,
    "Less": _A.lt.Tensor,
    "LessOrEqual": _A.le.Tensor,
    "Mul": _A.mul.Tensor,
    "Or": _A.logical_or.default,
    "Sub": _A.sub.Tensor,
    "Xor": _A.logical_xor.default,
}

_WITH_NUMBER: dict[str, OpOverload] = {
    "Add": _A.add.Tensor,
    "Equal": _A.eq.Scalar,
    "Greater": _A.gt.Scalar,
    "GreaterOrEqual": _A.ge.Scalar,
    "Less": _A.lt.Scalar,
    "LessOrEqual": _A.le.Scalar,
    "Mul": _A.mul.Tensor,
    "Sub": _A.sub.Tensor,
}
_NUMBER_FIRST: dict[str, OpOverload] = {
    "Add": _A.add.Tensor,
    "Equal": _A.eq.Scalar,
    "Greater": _A.lt.Scalar,
    "GreaterOrEqual": _A.le.Scalar,
    "Less": _A.gt.Scalar,
    "LessOrEqual": _A.ge.Scalar,
    "Mul": _A.mul.Tensor,
    "Sub": _A.rsub.Scalar,
}
"""The same with the operands exchanged."""


def unary(site: Site) -> Operand:
    return site.emit(UNARY[site.kind], site.operand(0))


def binary(site: Site) -> Operand:
    left, right = site.operand(0), site.operand(1)
    if (number := number_beside(left, right)) is not None and site.kind in _WITH_NUMBER:
        result = site.emit(_WITH_NUMBER[site.kind], left, number)
    elif (number := number_beside(right, left)) is not None and site.kind in _NUMBER_FIRST:
        result = site.emit(_NUMBER_FIRST[site.kind], right, number)
    else:
        if (merged := merge(site, left, right)) is not None:
            return merged
        result = site.emit(BINARY[site.kind], left, right)
    return result


def number_beside(operand: Operand, other: Operand) -> float | int | None:
    """The number that `other` is, where writing it as one changes no sizes."""
    if isinstance(operand, Known) or not isinstance(other, Known):
        return None
    return other.number if other.tensor.dim() <= len(shape_of(operand)) else None


def divide(site: Site) -> Operand:
    """On integers it rounds towards zero."""
    left, right = site.operand(0), site.operand(1)
    if not dtype_of(left).is_floating_point:
        result = site.emit(_A.div.Tensor_mode, left, right, rounding_mode="trunc")
    elif (number := number_beside(left, right)) is not None:
        result = site.emit(_A.div.Tensor, left, number)
    elif (number := number_beside(right, left)) is not None:
        result = site.emit(_A.mul.Tensor, site.emit(_A.reciprocal.default, right), number)
    else:
        result = site.emit(_A.div.Tensor, left, right)
    return result


def modulo(site: Site) -> Operand:
    """`fmod` takes the sign of the dividend, else of the divisor."""
    target = _A.fmod.Tensor if site.flag("fmod") else _A.remainder.Tensor
    return site.emit(target, site.operand(0), site.operand(1))


def power(site: Site) -> Operand:
    """The result has the element type of the base."""
    base, exponent = site.operand(0), site.operand(1)
    if (number := number_beside(base, exponent)) is not None:
        result = site.emit(_A.pow.Tensor_Scalar, base, number)
    elif (number := number_beside(exponent, base)) is not None:
        result = site.emit(_A.pow.Scalar, number, exponent)
    else:
        result = site.emit(_A.pow.Tensor_Tensor, base, exponent)
    return cast_to(site, result, dtype_of(base))


def several(site: Site) -> Operand:
    """Max, Min, Sum and Mean of any number of operands."""
    first, *rest = site.operands()
    for other in rest:
        if site.kind in ("Sum", "Mean"):
            first = site.emit(_A.add.Tensor, first, other)
        elif (number := number_beside(first, other)) is not None:
            first = site.emit(_A.clamp_min.default if site.kind == "Max" else _A.clamp_max.default, first, number)
        elif (number := number_beside(other, first)) is not None:
            first = site.emit(_A.clamp_min.default if site.kind == "Max" else _A.clamp_max.default, other, number)
        else:
            first = site.emit(_A.maximum.default if site.kind == "Max" else _A.minimum.default, first, other)
    return site.emit(_A.div.Tensor, first, float(len(rest) + 1)) if site.kind == "Mean" and rest else first


def clip(site: Site) -> Operand:
    """Bounds are attributes before opset 11, inputs since."""
    value = site.operand(0)
    if site.has("min"):
        bounds: list[Any] = [site.maybe_real("min"), site.maybe_real("max")]
    else:
        bounds = [site.optional(1), site.optional(2)]
        numbers = [bound.number if isinstance(bound, Known) else None for bound in bounds]
        if any(bound is not None and number is None for bound, number in zip(bounds, numbers, strict=True)):
            for bound, target in zip(bounds, (_A.maximum.default, _A.minimum.default), strict=True):
                value = value if bound is None else site.emit(target, value, bound)
            return value
        bounds = numbers
    if bounds == [None, None]:
        return value
    return site.emit(_A.clamp.default, value, *bounds)


def identity(site: Site) -> Operand:
    return site.operand(0)


def dropout(site: Site) -> Operand:
    """Without effect outside training, so it is left out."""
    site.maybe_real("ratio"), site.maybe_integer("seed"), site.optional(1)
    training = site.constant(2)
    if training is not None and bool(training.any()):
        raise site.refuse("it drops out: the file was exported in training mode")
    return site.operand(0)


def cast(site: Site) -> Operand:
    site.maybe_integer("saturate"), site.maybe_text("round_mode")  # of 8-bit floats, which are not read
    return cast_to(site, site.operand(0), site.element_type("to"))


def cast_like(site: Site) -> Operand:
    site.maybe_integer("saturate"), site.maybe_text("round_mode")
    return cast_to(site, site.operand(0), dtype_of(site.operand(1)))


def cast_to(site: Site, value: Operand, dtype: torch.dtype) -> Operand:
    return value if dtype_of(value) == dtype else site.emit(_A.to.dtype, value, dtype)


def where(site: Site) -> Operand:
    return site.emit(_A.where.self, site.operand(0), site.operand(1), site.operand(2))


def is_infinite(site: Site) -> Operand:
    site.must_be("detect_negative", 1)
    site.must_be("detect_positive", 1)
    return site.emit(_A.isinf.default, site.operand(0))


# Activations


def gelu(site: Site) -> Operand:
    return site.emit(_A.gelu.default, site.operand(0), approximate=site.maybe_text("approximate") or "none")


def swish(site: Site) -> Operand:
    """x * sigmoid(alpha * x)."""
    value, alpha = site.operand(0), site.real("alpha")
    if alpha == 1:
        result = site.emit(_A.silu.default, value)
    else:
        gate = site.emit(_A.sigmoid.default, site.emit(_A.mul.Tensor, value, alpha))
        result = site.emit(_A.mul.Tensor, value, gate)
    return result


def elu(site: Site) -> Operand:
    return site.emit(_A.elu.default, site.operand(0), site.real("alpha"))


def celu(site: Site) -> Operand:
    return site.emit(_A.celu.default, site.operand(0), site.real("alpha"))


def selu(site: Site) -> Operand:
    """gamma * (alpha * exp(x) - alpha) below zero, gamma * x above."""
    return site.emit(_A.elu.default, site.operand(0), site.real("alpha"), site.real("gamma"))


def leaky_relu(site: Site) -> Operand:
    return site.emit(_A.leaky_relu.default, site.operand(0), site.real("alpha"))


def thresholded_relu(site: Site) -> Operand:
    return site.emit(_A.threshold.default, site.operand(0), site.real("alpha"), 0.0)


def hard_sigmoid(site: Site) -> Operand:
    """max(0, min(1, alpha * x + beta))."""
    value, alpha, beta = site.operand(0), site.real("alpha"), site.real("beta")
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        result = site.emit(_A.hardsigmoid.default, value)
    else:
        line = site.emit(_A.add.Tensor, site.emit(_A.mul.Tensor, value, alpha), beta)
        result = site.emit(_A.clamp.default, line, 0.0, 1.0)
    return result


def softsign(site: Site) -> Operand:
    value = site.operand(0)
    below = site.emit(_A.add.Tensor, site.emit(_A.abs.default, value), 1.0)
    return site.emit(_A.div.Tensor, value, below)


def shrink(site: Site) -> Operand:
    """x + bias below -lambda, x - bias above lambda, else zero."""
    value, bias, threshold = site.operand(0), site.real("bias"), site.real("lambd")
    if bias == 0:
        result = site.emit(_A.hardshrink.default, value, threshold)
    elif bias == threshold:
        result = site.emit(_A.softshrink.default, value, threshold)
    else:
        raise site.refuse("`bias` is neither 0 nor `lambd`")
    return result


def prelu(site: Site) -> Operand:
    """One slope, or one a channel; other slopes are written out."""
    value, slope = site.operand(0), site.operand(1)
    sizes = shape_of(value)
    if isinstance(slope, Known) and slope.constant:
        own = [1] * (len(sizes) - slope.tensor.dim()) + list(slope.tensor.shape)
        by_channel = len(sizes) > 1 and own == [1, sizes[1], *[1] * (len(sizes) - 2)]
        if len(own) == len(sizes) and (by_channel or slope.tensor.numel() == 1):
            weight = site.parameter(as_vector(slope), "weight")
            return site.emit(_A.prelu.default, value, weight)
    negative = site.emit(_A.mul.Tensor, site.emit(_A.clamp_max.default, value, 0.0), slope)
    return site.emit(_A.add.Tensor, site.emit(_A.relu.default, value), negative)


def softmax(site: Site, target: OpOverload) -> Operand:
    """Before opset 13 all dimensions from `axis` on count as one."""
    value = site.operand(0)
    sizes = shape_of(value)
    axis = site.axis(site.integer("axis"), len(sizes))
    if site.opset < 13 and axis != len(sizes) - 1:
        flattened = site.emit(_A.flatten.using_ints, value, axis)
        result = site.emit(target, flattened, axis)
        return site.reshape(result, list(shapes_of(value)))
    return site.emit(target, value, axis)


soft_maximum = partial(softmax, target=_A.softmax.int)
log_soft_maximum = partial(softmax, target=_A.log_softmax.int)


def hard_maximum(site: Site) -> Operand:
    """One at the first largest element, else zero."""
    value = site.operand(0)
    axis = site.axis(site.integer("axis"), site.rank(value))
    if site.opset < 13 and axis != site.rank(value) - 1:
        raise site.refuse("it works on several dimensions at once")
    (size,) = site.fixed_sizes(value, axis)[:1]
    place = site.emit(_A.argmax.default, value, axis, True)
    places = site.emit(
        _A.reshape.default, site.emit(_A.arange.default, size), [-1, *[1] * (site.rank(value) - 1 - axis)]
    )
    hot = site.emit(_A.eq.Tensor, place, places)
    return cast_to(site, hot, dtype_of(value))
