"""Convolutions and products with matrices."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from worker.engine.ingest.onnx.known import TRANSPOSED, Known, Operand, dtype_of, shape_of
from worker.engine.ingest.onnx.operators.window import Window, pad_window
from worker.engine.ingest.onnx.site import Site
from worker.engine.ingest.rejected import shown

_A = torch.ops.aten
_PLAIN: dict[int, OpOverload] = {1: _A.conv1d.default, 2: _A.conv2d.default, 3: _A.conv3d.default}
_BACKWARDS: dict[int, OpOverload] = {
    1: _A.conv_transpose1d.default,
    2: _A.conv_transpose2d.input,
    3: _A.conv_transpose3d.input,
}


def convolution(site: Site) -> Operand:
    value, (weight, bias) = site.operand(0), _weights(site)
    window = Window.of(site, shape_of(weight)[2:], site.fixed_sizes(value, 2))
    value, padding = pad_window(site, value, window, 0.0)
    target = _target(site, _PLAIN, window)
    return site.emit(target, value, weight, bias, window.strides, padding, window.dilations, site.integer("group"))


def transposed_convolution(site: Site) -> Operand:
    """Its padding is cut from the result; unequal amounts are sliced off."""
    value, (weight, bias) = site.operand(0), _weights(site)
    sizes, kernel = site.fixed_sizes(value, 2), shape_of(weight)[2:]
    group, extra = site.integer("group"), site.maybe_integers("output_padding") or [0] * len(sizes)
    wanted = site.maybe_integers("output_shape")
    window = Window.of(site, kernel, sizes, transposed=True)
    full = [
        stride * (size - 1) + more + (length - 1) * dilation + 1
        for stride, size, more, length, dilation in zip(
            window.strides, sizes, extra, kernel, window.dilations, strict=True
        )
    ]
    before, after = list(window.before), list(window.after)
    automatic = site.maybe_text("auto_pad") or "NOTSET"
    if wanted is not None or automatic.startswith("SAME"):
        wanted = wanted or [size * stride for size, stride in zip(sizes, window.strides, strict=True)]
        totals = [have - want for have, want in zip(full, wanted[-len(full) :], strict=True)]
        if min(totals) < 0:
            raise site.refuse("`output_shape` is larger than the result")
        before = [total // 2 if automatic == "SAME_UPPER" else total - total // 2 for total in totals]
        after = [total - first for total, first in zip(totals, before, strict=True)]
    target = _target(site, _BACKWARDS, window)
    same = before == after
    result = site.emit(
        target, value, weight, bias, window.strides, before if same else [0] * len(full), extra, group, window.dilations
    )
    if not same:
        for dim, (first, last, length) in enumerate(zip(before, after, full, strict=True), 2):
            if first or last:
                result = site.emit(_A.slice.Tensor, result, dim, first, length - last)
    return result


def _weights(site: Site) -> tuple[Operand, fx.Node | None]:
    weight, bias = site.operand(1), site.optional(2)
    return site.parameter(weight, "weight"), None if bias is None else site.parameter(bias, "bias")


def _target(site: Site, targets: dict[int, OpOverload], window: Window) -> OpOverload:
    if len(window.strides) not in targets:
        raise site.refuse(f"it works in {len(window.strides)} dimensions")
    return targets[len(window.strides)]


def product(site: Site) -> Operand:
    """`MatMul`: a linear layer where the right-hand matrix is a weight."""
    left, right = site.operand(0), site.operand(1)
    if isinstance(left, fx.Node) and isinstance(right, Known) and right.constant and right.tensor.dim() == 2:
        if right.tensor.is_floating_point() and (turned := _turned(right)) is not None:
            result = site.emit(_A.linear.default, left, site.parameter(turned, "weight"))
        else:
            result = site.emit(_A.matmul.default, left, site.parameter(right, "weight"))
        return result
    return site.emit(_A.matmul.default, left, right)


def _turned(matrix: Known) -> Known | None:
    """The weight [out, in] of a linear layer whose right-hand matrix [in, out] this is.

    None where something else uses the matrix as it is, so that a copy would break the tie.
    """
    if matrix.initializer and not matrix.right_hand and TRANSPOSED not in matrix.forms:
        return None
    return matrix.form(TRANSPOSED, torch.t)


def general_product(site: Site) -> Operand:
    """`Gemm`: alpha * A' @ B' + beta * C."""
    left, right, added = site.operand(0), site.operand(1), site.optional(2)
    alpha, beta = site.real("alpha"), site.real("beta")
    turn_left, turn_right = site.flag("transA"), site.flag("transB")
    if turn_left:
        left = site.emit(_A.t.default, left)
    plain = isinstance(left, fx.Node) and isinstance(right, Known) and right.constant and alpha == 1 and beta in (0, 1)
    if plain and isinstance(right, Known) and (weight := right if turn_right else _turned(right)) is not None:
        place = site.parameter(weight, "weight")
        is_bias = isinstance(added, Known) and added.constant and beta == 1
        bias: Any = None
        if isinstance(added, Known) and is_bias and added.tensor.shape[-1:] == weight.tensor.shape[:1]:
            bias = site.parameter(as_vector(added), "bias") if added.tensor.numel() == added.tensor.shape[-1] else None
        result = site.emit(_A.linear.default, left, place, *([] if bias is None else [bias]))
        if bias is not None or added is None or beta == 0:
            return result
        return site.emit(_A.add.Tensor, result, added)
    if turn_right:
        right = site.emit(_A.t.default, right)
    result = site.emit(_A.matmul.default, left, right)
    if alpha != 1:
        result = site.emit(_A.mul.Tensor, result, alpha)
    if added is not None and beta != 0:
        added = site.emit(_A.mul.Tensor, added, beta) if beta != 1 else added
        result = site.emit(_A.add.Tensor, result, added)
    return result


def as_vector(known: Known) -> Known:
    """A weight [1, n] or [n, 1, 1] as [n]."""
    return known if known.tensor.dim() == 1 else known.form("vector", torch.flatten)


_EQUATION = re.compile(r"[A-Za-z.,>\-]{1,200}")


def einsum(site: Site) -> Operand:
    equation = site.text("equation").replace(" ", "")
    if not _EQUATION.fullmatch(equation):
        raise site.refuse(f"its equation is {shown(equation)}")
    return site.emit(_A.einsum.default, equation, site.operands())


def transpose(site: Site) -> Operand:
    """The transpose of a weight remembers it, so that it is one weight still."""
    value = site.operand(0)
    rank = site.rank(value)
    order = site.maybe_integers("perm")
    order = list(reversed(range(rank))) if order is None else [site.axis(axis, rank) for axis in order]
    if sorted(order) != list(range(rank)):
        raise site.refuse(f"`perm` is {order[:10]}")
    if order == list(range(rank)):
        return value
    result = site.emit(_A.permute.default, value, order)
    if isinstance(value, Known) and isinstance(result, Known) and order == [1, 0] and dtype_of(value).is_floating_point:
        result.forms[TRANSPOSED] = value
    return result
