"""Rules of operators that repeat values or make constant tensors: their sizes are soft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import fx

from worker.engine.graph.labels import Axes, Axis, Refusal
from worker.engine.graph.ops.call import Call, arguments_of, set_argument
from worker.engine.graph.ops.elementwise import narrowed_to, only_scales
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import sizes_of


def expand(call: Call) -> Axes:
    return _expand(call, call.operand("self"), call.argument("size"))


def expand_as(call: Call) -> Axes:
    """A scale of fixed size is narrowed to the channels it scales."""
    axes, other = call.operand("self"), call.operand("other")
    yields, growing = only_scales(call.node), call.node.meta["growing"]
    return [
        lent if own is None and yields and dim not in growing else call.tie(own, lent)
        for dim, (own, lent) in enumerate(zip(_expand(call, axes, list(call.result_sizes)), other, strict=True))
    ]


def rewrite_expand_as(node: fx.Node, remaining: Remaining) -> None:
    set_argument(node, "self", narrowed_to(remaining.axes(node), node, arguments_of(node)["self"], remaining))


def _expand(call: Call, axes: Axes, wanted: Sequence[object]) -> Axes:
    own, sizes = call.sizes("self"), call.result_sizes
    lead = len(sizes) - len(own)
    result: Axes = []
    for dim, size in enumerate(sizes):
        if dim >= lead and own[dim - lead] == size:
            result.append(axes[dim - lead])
            continue
        if dim >= lead:
            call.freeze(axes[dim - lead], "is repeated")
        result.append(call.labels.fresh_soft(size) if size > 1 and isinstance(wanted[dim], int) else None)
    return result


def rewrite_expand(node: fx.Node, remaining: Remaining) -> None:
    wanted, source = list(arguments_of(node)["size"]), sizes_of(arguments_of(node)["self"])
    before = sizes_of(node)
    for dim, axis in enumerate(remaining.axes(node)):
        own = dim - (len(before) - len(source))
        if remaining.shrinks(axis):
            wanted[dim] = -1 if own >= 0 and source[own] == before[dim] else remaining.count(axis)
    set_argument(node, "size", wanted)


def repeat(call: Call) -> Axes:
    """`repeat`, `tile`: the labels repeat; a dimension of one becomes soft."""
    axes, own, sizes = call.operand("self"), call.sizes("self"), call.result_sizes
    times = call.argument(_times(call.node))
    lead = len(sizes) - len(own)
    times = [*[1] * (len(sizes) - len(times)), *times]
    return [
        _repeated(call, axes[dim - lead] if dim >= lead else None, own[dim - lead] if dim >= lead else 1, times[dim])
        for dim in range(len(sizes))
    ]


def _repeated(call: Call, axis: Axis, size: int, times: object) -> Axis:
    if not isinstance(times, int):
        call.freeze(axis, "is repeated a number of times computed while running")
        return None
    if axis is not None:
        return np.tile(axis, times)
    return call.labels.fresh_soft(times) if size == 1 and times > 1 else None


def rewrite_repeat(node: fx.Node, remaining: Remaining) -> None:
    name = _times(node)
    times, source = list(arguments_of(node)[name]), arguments_of(node)["self"]
    axes, own = remaining.axes(node), sizes_of(source)
    lead = len(axes) - len(own)
    short = len(axes) - len(times)
    for dim, axis in enumerate(axes):
        if remaining.shrinks(axis) and (dim < lead or own[dim - lead] == 1):
            times[dim - short] = remaining.count(axis)
    set_argument(node, name, times)


def _times(node: fx.Node) -> str:
    return "repeats" if "repeats" in arguments_of(node) else "dims"


def repeat_interleave(call: Call) -> Axes:
    """Every index `repeats` times in a row, as grouped-query attention repeats its keys."""
    axes, dim, times = call.operand("self"), call.argument("dim"), call.argument("repeats")
    if dim is None or not isinstance(times, int):
        raise Refusal("repeats a flattened tensor")
    axis = axes[dim % len(axes)]
    axes[dim % len(axes)] = None if axis is None else np.repeat(axis, times)
    return axes


def factory(call: Call) -> Axes:
    """`zeros`, `ones`, `full`, `new_zeros` …: a size written in the graph is soft."""
    call.all_operands()
    wanted = call.argument("size")
    return [
        call.labels.fresh_soft(size) if size > 1 and isinstance(wanted[dim], int) else None
        for dim, size in enumerate(call.result_sizes)
    ]


def rewrite_factory(node: fx.Node, remaining: Remaining) -> None:
    wanted = list(arguments_of(node)["size"])
    for dim, axis in enumerate(remaining.axes(node)):
        if remaining.shrinks(axis):
            wanted[dim] = remaining.count(axis)
    set_argument(node, "size", wanted)


def fixed(call: Call) -> Axes:
    """`arange`, `scalar_tensor`: nothing in the result can shrink, and what it was made of must not."""
    for axes, _ in call.all_operands():
        for axis in axes:
            call.freeze(axis, "is needed whole")
    return [None] * len(call.result_sizes)
