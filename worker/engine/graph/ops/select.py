"""Rules of operators that take parts of tensors, put them together, repeat or pad them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import fx

from worker.engine.graph.labels import Axes, Axis, Indices, Refusal, Value
from worker.engine.graph.ops.aliases import is_written_after
from worker.engine.graph.ops.call import Call, arguments_of, set_argument
from worker.engine.graph.ops.elementwise import broadcast
from worker.engine.graph.ops.pick import pick, table_of
from worker.engine.graph.ops.reach import decides_output
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import sizes_of

SPLIT = torch.ops.aten.split_with_sizes.default


def cat(call: Call) -> Axes:
    operands, sizes = call.operands("tensors"), [sizes_of(node) for node in call.argument("tensors")]
    dim = call.argument("dim") % len(call.result_sizes)
    if any(len(own) != len(call.result_sizes) for own in sizes):
        raise Refusal("concatenates an empty tensor")
    rest = [(_without(axes, dim), (*own[:dim], 1, *own[dim + 1 :])) for axes, own in zip(operands, sizes, strict=True)]
    result = broadcast(call, rest, (*call.result_sizes[:dim], 1, *call.result_sizes[dim + 1 :]))
    parts = [(axes[dim], own[dim]) for axes, own in zip(operands, sizes, strict=True)]
    if any(axis is not None for axis, _ in parts):
        result[dim] = np.concatenate([np.zeros(size, np.int64) if axis is None else axis for axis, size in parts])
    return result


def _without(axes: Axes, dim: int) -> Axes:
    return [None if place == dim else axis for place, axis in enumerate(axes)]


def stack(call: Call) -> Axes:
    nodes = call.argument("tensors")
    operands = [(axes, sizes_of(node)) for axes, node in zip(call.operands("tensors"), nodes, strict=True)]
    result = broadcast(call, operands, sizes_of(nodes[0]))
    result.insert(call.argument("dim") % len(call.result_sizes), None)
    return result


def split(call: Call) -> Value:
    """`split`, `chunk`, `split_with_sizes`: every part takes its slice of the labels."""
    axes = call.operand("self")
    dim, start = call.argument("dim") % len(axes), 0
    if axes[dim] is not None:
        call.steady(call.argument("self"), dim)
    parts: list[Axes] = []
    for sizes in call.results_sizes:
        parts.append([*axes[:dim], _part(call, axes[dim], start, start + sizes[dim]), *axes[dim + 1 :]])
        start += sizes[dim]
    return tuple(parts)


def rewrite_split(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    dim = arguments["dim"] % len(sizes_of(arguments["self"]))
    axis = remaining.axes(arguments["self"])[dim]
    if axis is None or not remaining.shrinks(axis):
        return
    ends = np.cumsum([0] + [sizes[dim] for sizes in node.meta["sizes"]])
    counts = [remaining.count(axis[start:end]) for start, end in itertools.pairwise(ends)]
    node.target, node.args, node.kwargs = SPLIT, (arguments["self"], counts, dim), {}


def slice_(call: Call) -> Axes:
    axes = call.operand("self")
    dim = call.argument("dim") % len(axes)
    if axes[dim] is not None:
        bounds = [call.argument(name) for name in ("start", "end", "step")]
        if any(isinstance(bound, fx.Node) for bound in bounds):
            raise Refusal("slices channels at a place computed while running")
        if call.result_sizes[dim] != call.sizes("self")[dim]:
            call.steady(call.argument("self"), dim)
        if bounds[2] == 1:
            axes[dim] = _part(call, axes[dim], *bounds[:2])
        elif is_written_after(call.node):
            raise Refusal("shows every other channel of a tensor that is written to")
        else:
            axes[dim] = axes[dim][_stepped(call.node)]
    return axes


def _stepped(node: fx.Node) -> Indices:
    """The positions that a slice with steps takes."""
    arguments = arguments_of(node)
    positions = np.arange(sizes_of(arguments["self"])[arguments["dim"]])
    return positions[arguments["start"] : arguments["end"] : arguments["step"]]


def _part(call: Call, axis: Axis, start: int | None, end: int | None) -> Axis:
    if axis is None:
        return None
    part = axis[start:end]
    if part.size == 1:
        call.freeze(part, "is taken alone")
        return None
    return part.copy()


def rewrite_slice(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    before = sizes_of(arguments["self"])
    dim = arguments["dim"] % len(before)
    axis = remaining.axes(arguments["self"])[dim]
    if axis is None or not remaining.shrinks(axis) or sizes_of(node)[dim] == before[dim]:
        return
    if arguments["step"] != 1:
        pick(node, remaining, arguments["self"], dim, _stepped(node))
        return
    start, end, _ = slice(arguments["start"], arguments["end"]).indices(before[dim])
    start, end = remaining.count(axis[:start]), remaining.count(axis[:end])
    node.args, node.kwargs = (arguments["self"], dim, start, end), {}


def narrow(call: Call) -> Axes:
    axes = call.operand("self")
    dim = call.argument("dim") % len(axes)
    start, length = call.argument("start"), call.argument("length")
    if axes[dim] is not None:
        if isinstance(start, fx.Node) or isinstance(length, fx.Node):
            raise Refusal("slices channels at a place computed while running")
        call.steady(call.argument("self"), dim)
        start %= call.sizes("self")[dim]
        axes[dim] = _part(call, axes[dim], start, start + length)
    return axes


def rewrite_narrow(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    dim = arguments["dim"] % len(sizes_of(arguments["self"]))
    axis = remaining.axes(arguments["self"])[dim]
    if axis is None or not remaining.shrinks(axis):
        return
    start = arguments["start"] % axis.size
    count = remaining.count(axis[start : start + arguments["length"]])
    node.args, node.kwargs = (arguments["self"], dim, remaining.count(axis[:start]), count), {}


def select(call: Call) -> Axes:
    axes = call.operand("self")
    call.freeze(axes.pop(call.argument("dim") % len(axes)), "is indexed one by one")
    return axes


def unbind(call: Call) -> Value:
    axes = call.operand("self")
    call.freeze(axes.pop(call.argument("dim") % len(axes)), "is taken apart one by one")
    return tuple(list(axes) for _ in call.results_sizes)


def index(call: Call) -> Axes:
    """Indexing by integer tensors: indexed dimensions stay whole, the others keep their labels, and so does one
    that is taken in the order of a table that the network holds.

    The result's new dimensions stand where the indices stood, or first when these are not neighbours.
    """
    axes, indices = call.operand("self"), call.argument("indices")
    call.taken.update(("indices", place) for place in range(len(indices)))
    nodes = [(place, node) for place, node in enumerate(indices) if node is not None]
    if not nodes or any(_is_mask(node) for _, node in nodes):
        raise Refusal("indexes with a mask")
    place, table = _ordered(call.node)
    axis = axes[place]
    if table is not None and axis is not None:
        call.steady(call.argument("self"), place)
        axes[place] = axis[table]
        return axes
    for _, node in nodes:
        call.labels.freeze_value(call.values[node], "is an index")
    for place, _ in nodes:
        call.freeze(axes[place], "is indexed")
    places = [place for place, _ in nodes]
    new: Axes = [None] * max(len(sizes_of(node)) for _, node in nodes)
    rest = [axis for place, axis in enumerate(axes) if place not in places]
    at = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    return [*rest[:at], *new, *rest[at:]]


def rewrite_index(node: fx.Node, remaining: Remaining) -> None:
    place, table = _ordered(node)
    if table is not None:
        pick(node, remaining, arguments_of(node)["self"], place, table)


def _ordered(node: fx.Node) -> tuple[int, Indices | None]:
    """The only index, if it is a row of positions that the network holds, after the dimension that it orders."""
    given = [(place, index) for place, index in enumerate(arguments_of(node)["indices"]) if index is not None]
    return (given[0][0], table_of(given[0][1])) if len(given) == 1 else (0, None)


def _is_mask(node: fx.Node) -> bool:
    return node.meta.get("dtype") in (torch.bool, torch.uint8)


def index_select(call: Call) -> Axes:
    """A dimension taken in the order of a table that the network holds keeps its labels."""
    axes, chosen = call.operand("self"), call.operand("index")
    dim = call.argument("dim") % len(axes)
    table, along = table_of(call.argument("index")), axes[dim]
    if table is not None and along is not None:
        call.steady(call.argument("self"), dim)
        axes[dim] = along[table]
        return axes
    call.freeze(along, "is indexed")
    for axis in chosen:
        call.freeze(axis, "is an index")
    axes[dim] = None
    return axes


def rewrite_index_select(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    if (table := table_of(arguments["index"])) is not None:
        pick(node, remaining, arguments["self"], arguments["dim"] % len(sizes_of(node)), table)


def roll(call: Call) -> Axes:
    axes = call.operand("self")
    dims = _dims(call, len(axes))
    if len(dims) > 1 or not call.argument("dims"):
        return whole(call)
    axis = axes[dims[0]]
    if axis is not None:
        call.steady(call.argument("self"), dims[0])
        axes[dims[0]] = axis[_rolled(call.node, axis.size)]
    return axes


def rewrite_roll(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    if len(arguments["dims"]) == 1:
        sizes = sizes_of(node)
        dim = arguments["dims"][0] % len(sizes)
        pick(node, remaining, arguments["self"], dim, _rolled(node, sizes[dim]))


def _rolled(node: fx.Node, size: int) -> Indices:
    return np.roll(np.arange(size), arguments_of(node)["shifts"][0])


def along(call: Call) -> Axes:
    """`softmax`, `log_softmax`: over the channels that stay, as a normalisation."""
    axes = call.operand("self")
    if any(axes[dim] is not None for dim in _dims(call, len(axes))) and decides_output(call.node):
        raise Refusal("makes the output of the network of them")
    return axes


def flip(call: Call) -> Axes:
    axes = call.operand("self")
    for dim in _dims(call, len(axes)):
        axis = axes[dim]
        axes[dim] = None if axis is None else axis[::-1].copy()
    return axes


def whole(call: Call) -> Axes:
    """`cumsum`, `cumprod`: the dimensions worked along are needed at full length, the others pass."""
    return call.whole("self", _dims(call, len(call.sizes("self"))))


def triangle(call: Call) -> Axes:
    axes = call.operand("self")
    for axis in axes[-2:]:
        call.freeze(axis, "is cut to a triangle")
    return axes


def _dims(call: Call, rank: int) -> list[int]:
    dims: Any = call.arguments.get("dims", call.arguments.get("dim"))
    dims = list(range(rank)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    return [dim % rank for dim in dims]


def pad(call: Call) -> Axes:
    """Zeros beside channels are soft: they go where the channels they meet go."""
    axes, amounts = call.operand("self"), call.argument("pad")
    for place in range(len(amounts) // 2):
        dim, before, after = len(axes) - 1 - place, amounts[2 * place], amounts[2 * place + 1]
        axis = axes[dim]
        if before == after == 0 or axis is None:
            continue
        call.steady(call.argument("self"), dim)
        if not (isinstance(before, int) and isinstance(after, int)) or min(before, after) < 0:
            call.freeze(axis, "is padded by an amount computed while running, or cropped")
        elif call.argument("mode") != "constant" or call.argument("value"):
            call.freeze(axis, "is padded with values that are not zero")
        else:
            soft = call.labels.fresh_soft
            axes[dim] = np.concatenate([soft(before), axis, soft(after)])
            continue
        axes[dim] = None
    return axes


def rewrite_pad(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    axes, amounts = remaining.axes(node), list(arguments["pad"])
    for place in range(len(amounts) // 2):
        axis = axes[len(axes) - 1 - place]
        before, after = amounts[2 * place : 2 * place + 2]
        if axis is not None and remaining.shrinks(axis):
            amounts[2 * place] = remaining.count(axis[:before])
            amounts[2 * place + 1] = remaining.count(axis[axis.size - after :])
    set_argument(node, "pad", amounts)


def glu(call: Call) -> Axes:
    """The first half of the channels times the sigmoid of the second half."""
    axes = call.operand("self")
    dim = call.argument("dim") % len(axes)
    axis = axes[dim]
    if axis is not None:
        first, second = axis.reshape(2, -1)
        axes[dim] = call.tie(first.copy(), second.copy())
    return axes


def embedding(call: Call) -> Axes:
    """`embedding` whose table was computed or is shared in another form."""
    table = call.operand("weight")
    call.freeze(table[0], "is a vocabulary")
    return [*call.operand("indices"), table[1]]
