"""Rules of normalisations written as calls."""

from __future__ import annotations

from torch import fx

from worker.engine.graph.labels import Axes
from worker.engine.graph.ops.call import Call, arguments_of, set_argument
from worker.engine.graph.ops.convolve import grouped_by_offset
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import sizes_of


def per_channel(call: Call) -> Axes:
    """`batch_norm`, `instance_norm`, `prelu`: every operand with one value a channel follows dimension 1.

    Weight standardisation calls them on weights: their statistics then run over input channels, over those that stay.
    """
    name = "input" if "input" in call.arguments else "self"
    axes = call.operand(name)
    for follower in ("weight", "bias", "running_mean", "running_var"):
        if (values := call.optional(follower)) is not None and call.sizes(follower) != (1,):
            follow_channel(call, axes, values)
    return axes


def fix_positions(call: Call, axes: Axes) -> None:
    """The positions of a channel, which its statistics are taken over."""
    for axis in axes[2:]:
        call.freeze(axis, "is a spatial dimension")


def follow_channel(call: Call, axes: Axes, values: Axes) -> None:
    call.tie(values[0], axes[1] if len(axes) > 1 else None)


def group_norm(call: Call) -> Axes:
    axes, groups = call.operand("input"), call.argument("num_groups")
    normalise_groups(call, axes, groups, call.sizes("input")[1])
    for follower in ("weight", "bias"):
        if (values := call.optional(follower)) is not None:
            follow_channel(call, axes, values)
    return axes


def normalise_groups(call: Call, axes: Axes, groups: int, channels: int) -> None:
    fix_positions(call, axes)
    if 1 < groups < channels:
        grouped_by_offset(call, axes[1], groups)


def rewrite_group_norm(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    if arguments["num_groups"] == sizes_of(arguments["input"])[1]:
        set_argument(node, "num_groups", remaining.sizes(arguments["input"])[1])


def last_dims(call: Call) -> Axes:
    """`layer_norm`, `rms_norm`: over the last dimensions; weight and bias have exactly these."""
    axes = call.operand("input")
    for follower in ("weight", "bias"):
        if follower in call.arguments and (values := call.optional(follower)) is not None:
            follow_last(call, axes, values)
    return axes


def follow_last(call: Call, axes: Axes, values: Axes) -> None:
    for place, axis in enumerate(values):
        call.tie(axis, axes[place - len(values)])


def rewrite_last_dims(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    rank = len(arguments["normalized_shape"])
    axes, sizes = remaining.axes(arguments["input"])[-rank:], remaining.sizes(arguments["input"])[-rank:]
    if any(remaining.shrinks(axis) for axis in axes):
        set_argument(node, "normalized_shape", list(sizes))


def weight_norm(call: Call) -> Axes:
    """`_weight_norm(v, g, dim)`: v scaled to length g along every dimension but `dim`."""
    axes, length = call.operand("v"), call.operand("g")
    dim = call.argument("dim")
    for place, axis in enumerate(length):
        if place == dim % len(axes):
            axes[place] = call.tie(axes[place], axis)
    return axes
