"""Rules of the view family: dimensions merge and split, labels follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import fx

from worker.engine.graph.labels import Axes, Axis, Indices
from worker.engine.graph.ops.call import Call, arguments_of, set_argument
from worker.engine.graph.ops.convolve import grouped_by_offset
from worker.engine.graph.ops.fate import pick_axis
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import Sizes, sizes_of


def view(call: Call) -> Axes:
    """`view`, `reshape`."""
    name = "size" if "size" in call.arguments else "shape"
    axes = _reshape(call, call.operand("self"))
    return _only_rewritable(call, axes, call.argument(name))


def flatten(call: Call) -> Axes:
    return _reshape(call, call.operand("self"))


def unflatten(call: Call) -> Axes:
    axes = _reshape(call, call.operand("self"))
    start = call.argument("dim") % len(call.sizes("self"))
    wanted = call.argument("sizes")
    axes[start : start + len(wanted)] = _only_rewritable(call, axes[start : start + len(wanted)], wanted)
    return axes


def view_as(call: Call) -> Axes:
    """The other operand lends its sizes, so both must shrink alike."""
    axes, other = _reshape(call, call.operand("self")), call.operand("other")
    return [call.tie(first, second) for first, second in zip(axes, other, strict=True)]


def rewrite_view(node: fx.Node, remaining: Remaining) -> None:
    name = "size" if "size" in arguments_of(node) else "shape"
    set_argument(node, name, _resized(arguments_of(node)[name], remaining.axes(node), remaining))


def rewrite_unflatten(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    start = arguments["dim"] % len(sizes_of(arguments["self"]))
    axes = remaining.axes(node)[start : start + len(arguments["sizes"])]
    set_argument(node, "sizes", _resized(arguments["sizes"], axes, remaining))


def _resized(wanted: Sequence[object], axes: Axes, remaining: Remaining) -> list[object]:
    sizes = list(wanted)
    for dim, axis in enumerate(axes):
        if remaining.shrinks(axis) and sizes[dim] != -1:
            sizes[dim] = remaining.count(axis) if isinstance(sizes[dim], int) else -1
    return sizes


def _only_rewritable(call: Call, axes: Axes, wanted: Sequence[object]) -> Axes:
    """A size computed from the batch becomes -1 after a cut; where -1 is taken already, its labels freeze."""
    computed = [dim for dim, axis in enumerate(axes) if axis is not None and isinstance(wanted[dim], fx.Node)]
    if len(computed) + sum(size == -1 for size in wanted if isinstance(size, int)) > 1:
        for dim in computed:
            call.freeze(axes[dim], "has a size computed while running")
    return axes


def _reshape(call: Call, axes: Axes) -> Axes:
    before, after = call.sizes("self"), call.result_sizes
    result: Axes = [None] * len(after)
    for merged, split in _blocks(before, after):
        flat = _merge(call, axes, before, merged)
        wide = [dim for dim in split if after[dim] > 1]
        if flat is None or not wide:
            if flat is not None:
                call.freeze(flat, "is merged into a dimension of one")
            continue
        dim, axis = _split(call, flat, after, wide)
        result[dim] = axis
    return result


def _blocks(before: Sizes, after: Sizes) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions with equal products, in order."""
    i = j = 0
    while i < len(before) or j < len(after):
        left, right, product_left, product_right = [], [], 1, 1
        if i < len(before):
            left, product_left, i = [i], before[i], i + 1
        if j < len(after):
            right, product_right, j = [j], after[j], j + 1
        while product_left != product_right:
            if (product_left < product_right and i < len(before)) or j >= len(after):
                left.append(i)
                product_left *= before[i]
                i += 1
            else:
                right.append(j)
                product_right *= after[j]
                j += 1
        yield left, right


def _merge(call: Call, axes: Axes, sizes: Sizes, dims: list[int]) -> Axis:
    """One label for every index of the merged dimension. Only one labelled dimension survives a merge: real channels
    before soft ones, prunable ones before fixed ones, the largest."""
    labelled = [(dim, axis) for dim in dims if (axis := axes[dim]) is not None]
    if not labelled:
        return None
    labelled.sort(key=lambda item: (not call.labels.is_soft(item[1]), bool(item[1].any()), item[1].size))
    dim, axis = labelled.pop()
    for _, other in labelled:
        call.freeze(other, "is merged with other channels")
    column = axis.reshape([-1 if other == dim else 1 for other in dims])
    return np.broadcast_to(column, [sizes[other] for other in dims]).reshape(-1)


def _split(call: Call, flat: Indices, sizes: Sizes, dims: list[int]) -> tuple[int, Indices]:
    """The dimension that carries the labels after a split, and its labels."""
    if len(dims) == 1:
        return dims[0], flat
    grid = flat.reshape([sizes[dim] for dim in dims])
    for place, dim in enumerate(dims):
        rows = np.moveaxis(grid, place, 0).reshape(grid.shape[place], -1)
        if (rows == rows[:, :1]).all():  # the labels vary along this dimension only: a merge undone
            return dim, rows[:, 0].copy()
    dim = pick_axis(call.node, dims, call.attention, call.labels.avoided.get(call.node.name, frozenset()))
    place = dims.index(dim)
    rows = np.moveaxis(grid, place, 0).reshape(grid.shape[place], -1)
    axis = rows[:, 0].copy()
    call.labels.choices.append((call.node.name, dim, axis))
    everywhere = np.broadcast_to(axis.reshape([-1 if other == dim else 1 for other in dims]), grid.shape)
    call.tie(everywhere.reshape(-1), grid.reshape(-1))
    return dim, axis


def pixel_shuffle(call: Call) -> Axes:
    """Channel c of the result is made of r² neighbouring channels, which go together."""
    axes = call.operand("self")
    factor = call.argument("upscale_factor") ** 2
    _fix_image(call, axes)
    channels = axes[-3]
    if channels is not None:
        rows = channels.reshape(-1, factor)
        call.tie(np.repeat(rows[:, 0], factor), channels)
        channels = rows[:, 0].copy()
    return [*axes[:-3], channels, None, None]


def pixel_unshuffle(call: Call) -> Axes:
    axes = call.operand("self")
    _fix_image(call, axes)
    channels = axes[-3]
    factor = call.argument("downscale_factor") ** 2
    return [*axes[:-3], None if channels is None else np.repeat(channels, factor), None, None]


def channel_shuffle(call: Call) -> Axes:
    """Groups of channels interleaved: every group keeps the same offsets."""
    axes, groups = call.operand("self"), call.argument("groups")
    channels = axes[1]
    if channels is not None:
        grouped_by_offset(call, channels, groups)
        axes[1] = channels.reshape(groups, -1).T.reshape(-1)
    return axes


def _fix_image(call: Call, axes: Axes) -> None:
    for axis in axes[-2:]:
        call.freeze(axis, "is a spatial dimension")
