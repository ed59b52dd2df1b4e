"""Pools."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._ops import OpOverload

from worker.engine.ingest.onnx.known import BATCHES, Operand
from worker.engine.ingest.onnx.operators.window import Window, pad_window
from worker.engine.ingest.onnx.site import Site

_A = torch.ops.aten
_MAXIMUM: dict[int, OpOverload] = {1: _A.max_pool1d.default, 2: _A.max_pool2d.default, 3: _A.max_pool3d.default}
_MEAN: dict[int, OpOverload] = {1: _A.avg_pool1d.default, 2: _A.avg_pool2d.default, 3: _A.avg_pool3d.default}
MAXIMUM_COUNTED = 1 << 26
"""Elements of a padded image in which windows count differently."""


def maximum_pool(site: Site) -> Operand:
    site.maybe_integer("storage_order")  # of the indices, which are not read
    value = site.operand(0)
    window, ceil = _window(site, value), bool(site.maybe_integer("ceil_mode"))
    if any(2 * amount > length for amount, length in zip(window.before, window.kernel, strict=True)):
        padded, padding = _pad_apart(site, value, window, -math.inf), [0] * len(window.kernel)
    else:
        padded, padding = pad_window(site, value, window, -math.inf)
    return site.emit(
        _target(site, _MAXIMUM, window), padded, window.kernel, window.strides, padding, window.dilations, ceil
    )


def mean_pool(site: Site) -> Operand:
    """Where torch counts a window's elements in another way, its sums are divided by a table of our own."""
    value = site.operand(0)
    window, ceil = _window(site, value), bool(site.maybe_integer("ceil_mode"))
    count_all, axes = site.flag("count_include_pad"), len(window.kernel)
    target = _target(site, _MEAN, window)
    small = all(2 * amount <= length for amount, length in zip(window.before, window.kernel, strict=True))
    if small and window.before == window.after and window.dilations == [1] * axes and not (ceil and count_all):
        return site.emit(target, value, window.kernel, window.strides, window.before, ceil, count_all)
    if window.dilations != [1] * axes:
        raise site.refuse("it is dilated")
    sizes = site.fixed_sizes(value, 2)
    ends = [
        _extra(size + first + last, length, stride, first) if ceil else 0
        for size, first, last, length, stride in zip(
            sizes, window.before, window.after, window.kernel, window.strides, strict=True
        )
    ]
    after = [last + extra for last, extra in zip(window.after, ends, strict=True)]
    wide = Window(window.kernel, window.strides, window.dilations, window.before, after)
    padded = _pad_apart(site, value, wide, 0.0)
    result = site.emit(target, padded, window.kernel, window.strides, [0] * axes, False, True)
    counted = _counts(sizes, wide, window.after if count_all else None)
    total = math.prod(window.kernel)
    if bool((counted == total).all()):
        return result
    scale = site.compute([(total / counted)[None, None]] * len(BATCHES))
    return site.emit(_A.mul.Tensor, result, scale)


def _extra(padded: int, length: int, stride: int, first: int) -> int:
    """How much more padding gives the last window, which `ceil_mode` lets hang over the end, its full length."""
    places = -(-(padded - length) // stride) + 1
    return max((places - 1) * stride + length - padded, 0)


def _counts(sizes: list[int], wide: Window, after: list[int] | None) -> Tensor:
    """How many elements of each window count: those of the image, and the padding up to `after` where that counts.
    Raises ValueError where they are too many to count."""
    padded = [before + size + more for before, size, more in zip(wide.before, sizes, wide.after, strict=True)]
    if math.prod(padded) > MAXIMUM_COUNTED:
        raise ValueError(f"its windows in {padded} count differently; those in {MAXIMUM_COUNTED} elements are counted")
    counts = torch.ones([1] * len(sizes))
    for axis, size in enumerate(sizes):
        line = torch.zeros(padded[axis])
        if after is None:
            line[wide.before[axis] : wide.before[axis] + size] = 1
        else:
            line[: wide.before[axis] + size + after[axis]] = 1
        each = line.unfold(0, wide.kernel[axis], wide.strides[axis]).sum(1)
        counts = counts * each.reshape([-1 if other == axis else 1 for other in range(len(sizes))])
    return counts


def _pad_apart(site: Site, value: Operand, window: Window, fill: float) -> Operand:
    amounts = [amount for pair in zip(reversed(window.before), reversed(window.after), strict=True) for amount in pair]
    padded: Operand = site.emit(_A.pad.default, value, amounts, "constant", fill) if any(amounts) else value
    return padded


def _window(site: Site, value: Operand) -> Window:
    kernel = site.maybe_integers("kernel_shape")
    if kernel is None:
        raise site.refuse("it has no `kernel_shape`")
    return Window.of(site, kernel, site.fixed_sizes(value, 2))


def _target(site: Site, targets: dict[int, OpOverload], window: Window) -> OpOverload:
    if len(window.kernel) not in targets:
        raise site.refuse(f"it works in {len(window.kernel)} dimensions")
    return targets[len(window.kernel)]


def global_mean(site: Site) -> Operand:
    value = site.operand(0)
    return site.emit(_A.mean.dim, value, list(range(2, site.rank(value))), True)


def global_maximum(site: Site) -> Operand:
    value = site.operand(0)
    return site.emit(_A.amax.default, value, list(range(2, site.rank(value))), True)


def global_norm(site: Site) -> Operand:
    value = site.operand(0)
    dims = list(range(2, site.rank(value)))
    return site.emit(_A.linalg_vector_norm.default, value, site.integer("p"), dims, True)
