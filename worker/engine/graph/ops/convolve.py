"""Rules of convolutions, as layers and as calls with a computed weight."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from worker.engine.graph.labels import Axes, Axis, Indices, Refusal
from worker.engine.graph.ops.call import Call, arguments_of, set_argument
from worker.engine.graph.ops.sizing import Remaining, Sizing
from worker.engine.graph.shapes import Sizes, sizes_of


def convolution(call: Call) -> Axes:
    weight, sizes = call.operand("weight"), call.sizes("weight")
    transposed = "transpose" in str(call.node.target)
    groups = call.number("groups")
    return convolve(call, weight, call.optional("bias"), groups, sizes, transposed)


def convolve(
    call: Call,
    weight: Axes,
    bias: Axes | None,
    groups: int,
    weight_sizes: tuple[int, ...],
    transposed: bool,
) -> Axes:
    """Input [N, C, *spatial] or [C, *spatial]; weight [out, in / groups, *kernel] or transposed
    [in, out / groups, *kernel].

    With one channel a group (depthwise) an output goes with its input. With more, the same offset in every group goes
    together and the number of groups stays. Channels that stand where places do are needed at full length.
    """
    spatial = len(weight) - 2
    for axis in weight[2:]:
        call.freeze(axis, "is a kernel dimension")
    axes = call.whole("input", range(-spatial, 0))
    if transposed and call.restored:
        raise Refusal("spreads channels as places")
    channels = axes[-spatial - 1]
    inner = call.sizes("input")[-spatial - 1]
    if groups == 1:
        call.tie(weight[0 if transposed else 1], channels)
        result = weight[1 if transposed else 0]
    elif groups == inner:
        result = _depthwise(call, channels, weight, weight_sizes, transposed)
    else:
        result = _grouped(call, channels, weight, groups, inner, transposed)
    if bias is not None:
        call.tie(result, bias[0])
    return [*axes[: -spatial - 1], result, *[None] * spatial]


def _depthwise(call: Call, channels: Axis, weight: Axes, sizes: tuple[int, ...], transposed: bool) -> Axis:
    if transposed:
        call.tie(weight[0], channels)
        call.freeze(weight[1], "is a multiplier of channels")
        return None if weight[0] is None else np.repeat(weight[0], sizes[1])
    multiplier = sizes[0] // call.sizes("input")[1 - len(sizes)]
    call.tie(weight[0], None if channels is None else np.repeat(channels, multiplier))
    return weight[0]


def _grouped(call: Call, channels: Axis, weight: Axes, groups: int, inner: int, transposed: bool) -> Axis:
    if channels is None:
        channels = np.zeros(inner, np.int64)
    inputs = _by_offset(call, channels, groups)
    if transposed:
        call.tie(weight[0], channels)
        offsets = weight[1]
        return None if offsets is None else np.tile(offsets, groups)
    call.tie(weight[1], None if weight[1] is None else inputs)
    if weight[0] is not None:
        _by_offset(call, weight[0], groups)
    return weight[0]


def _by_offset(call: Call, axis: Axis, groups: int) -> Axis:
    """Tie the same offset in every group; the labels of the first group."""
    if axis is None:
        return None
    rows = axis.reshape(groups, -1)
    call.tie(np.broadcast_to(rows[:1], rows.shape).reshape(-1), axis)
    first: Indices = rows[0].copy()
    return first


def grouped_by_offset(call: Call, axis: Axis, groups: int) -> None:
    """A normalisation over groups of channels: every group keeps the same offsets."""
    _by_offset(call, axis, groups)


def rewrite_convolution(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    spatial = len(sizes_of(arguments["weight"])) - 2
    channels = remaining.axes(arguments["input"])[-spatial - 1]
    groups = arguments["groups"]
    if isinstance(groups, int) and groups > 1 and channels is not None and channels.size == groups:
        set_argument(node, "groups", remaining.count(channels))


def convolution_cost(node: fx.Node, sizing: Sizing) -> int:
    arguments = arguments_of(node)
    weight = sizing.sizes(arguments["weight"])
    if "transpose" in str(node.target):
        return transposed_cost(arguments["input"], weight, sizing)
    return math.prod(sizing.sizes(node)) * math.prod(weight[1:])


def transposed_cost(source: fx.Node, weight: Sizes, sizing: Sizing) -> int:
    """Every value of the input meets the kernel. Positions that a cut takes from it are put back before."""
    spatial = len(weight) - 2
    values = math.prod(sizing.sizes(source)[:-spatial]) * math.prod(sizes_of(source)[-spatial:])
    return values * math.prod(weight[1:])
