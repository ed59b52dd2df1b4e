"""Rules of operators that read from or write to places given by a tensor of indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from worker.engine.graph.labels import Axes, Refusal
from worker.engine.graph.ops.call import Call, arguments_of
from worker.engine.graph.ops.elementwise import broadcast
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import Sizes, sizes_of


def index_put(call: Call) -> Axes:
    """Writing at indexed places. The values meet what they replace, as far as it is not indexed."""
    axes, own = call.operand("self"), call.sizes("self")
    values, sizes = call.operand("values"), call.sizes("values")
    places, new, at = _indexed(call, axes)
    rest = [place for place in range(len(axes)) if place not in places]
    order = [*rest[:at], *[None] * new, *rest[at:]]
    target: Axes = [None if place is None else axes[place] for place in order]
    # The indexed part has sizes of its own, and nothing in it can shrink.
    lead = [1 if place is None else own[place] for place in order]
    wide = tuple(max(size, other) for size, other in zip(lead, _aligned(sizes, len(lead)), strict=True))
    met = broadcast(call, [(target, wide), (values, sizes)], wide)
    for place, axis in zip(order, met, strict=True):
        if place is None:
            call.freeze(axis, "is written at places given by indices")
    return axes


def _aligned(sizes: Sizes, rank: int) -> Sizes:
    return (*[1] * (rank - len(sizes)), *sizes)


def _indexed(call: Call, axes: Axes) -> tuple[list[int], int, int]:
    """The dimensions that `indices` take, how many take their place, and where.

    These stand where the indices stood, or first when the indices are not neighbours. A mask of k dimensions takes k
    and gives one.
    """
    indices: Sequence[fx.Node | None] = call.argument("indices")
    call.taken.update(("indices", place) for place in range(len(indices)))
    places: list[int] = []
    new = dim = 0
    for node in indices:
        if node is None:
            dim += 1
            continue
        call.labels.freeze_value(call.values[node], "is an index")
        mask = _is_mask(node)
        width = len(sizes_of(node)) if mask else 1
        new = max(new, 1 if mask else len(sizes_of(node)))
        places.extend(range(dim, dim + width))
        dim += width
    if not places:
        raise Refusal("indexes with nothing")
    for place in places:
        call.freeze(axes[place], "is indexed")
    at = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    return places, new, at


def _is_mask(node: fx.Node) -> bool:
    return node.meta.get("dtype") in (torch.bool, torch.uint8)


def gather(call: Call) -> Axes:
    """The dimension gathered from stays whole, the index says how long it is then; the others meet the index's."""
    axes, chosen = call.operand("self"), call.operand("index")
    dim = _dim(call, len(axes))
    result = _meet_beside(call, dim, [(axes, call.sizes("self")), (chosen, call.sizes("index"))])
    result[dim] = None
    return result


def take_along(call: Call) -> Axes:
    """`take_along_dim`: as `gather`, and a dimension of one is broadcast."""
    if call.argument("dim") is None:
        raise Refusal("reads from a flattened tensor")
    axes, chosen = call.operand("self"), call.operand("indices")
    dim = _dim(call, len(axes))
    result = _meet_beside(call, dim, [(axes, call.sizes("self")), (chosen, call.sizes("indices"))])
    return [None if place == dim or size == 1 else result[place] for place, size in enumerate(call.sizes("self"))]


def scatter(call: Call) -> Axes:
    """The dimension written to stays whole; the others meet those of the index and of what is written."""
    axes = call.operand("self")
    dim = _dim(call, len(axes))
    operands = [(axes, call.sizes("self")), (call.operand("index"), call.sizes("index"))]
    source = call.optional("src")
    if source is not None:
        operands.append((source, call.sizes("src")))
    return _meet_beside(call, dim, operands)


def index_add(call: Call) -> Axes:
    """`index_add`, `index_copy`: slices written to whole places of a dimension, which stays; the others meet."""
    axes, index = call.operand("self"), call.operand("index")
    for axis in index:
        call.freeze(axis, "is an index")
    dim = _dim(call, len(axes))
    return _meet_beside(call, dim, [(axes, call.sizes("self")), (call.operand("source"), call.sizes("source"))])


def index_fill(call: Call) -> Axes:
    """Places of one dimension overwritten with a number: it stays whole, the others pass."""
    axes = call.operand("self")
    dim = _dim(call, len(axes))
    for axis in (axes[dim], *call.operand("index"), *(call.optional("value") or ())):
        call.freeze(axis, "is filled at places given by indices")
    return [None if place == dim else axis for place, axis in enumerate(axes)]


def _dim(call: Call, rank: int) -> int:
    if rank == 0:
        raise Refusal("works on a single number")
    dim: int = call.argument("dim") % rank
    return dim


def _meet_beside(call: Call, dim: int, operands: Sequence[tuple[Axes, Sizes]]) -> Axes:
    """Dimensions of equal size meet, but `dim`, which stays whole; so do those of which only a part is used."""
    (result, sizes), *others = operands
    for axes, own in others:
        for place, axis in enumerate(axes):
            if place == dim or own[place] != sizes[place]:
                call.freeze(axis, "is used at places given by indices")
                call.freeze(result[place], "is used at places given by indices")
            else:
                result[place] = call.tie(result[place], axis)
    return result


def slice_scatter(call: Call) -> Axes:
    """A slice replaced: what replaces it meets what it replaces."""
    axes, source = call.operand("self"), call.operand("src")
    dim = _dim(call, len(axes))
    bounds = [call.argument(name) for name in ("start", "end", "step")]
    if axes[dim] is not None and (any(isinstance(bound, fx.Node) for bound in bounds) or bounds[2] != 1):
        raise Refusal("replaces channels at places computed while running, or every other one")
    for place, axis in enumerate(source):
        own = axes[place]
        call.tie(own if place != dim or own is None else own[slice(*bounds[:2])], axis)
    return axes


def rewrite_slice_scatter(node: fx.Node, remaining: Remaining) -> None:
    arguments = arguments_of(node)
    dim = arguments["dim"] % len(sizes_of(arguments["self"]))
    axis = remaining.axes(arguments["self"])[dim]
    if axis is not None and remaining.shrinks(axis):
        first, last, _ = slice(arguments["start"], arguments["end"]).indices(axis.size)
        places = remaining.count(axis[:first]), remaining.count(axis[:last])
        node.args, node.kwargs = (arguments["self"], arguments["src"], dim, *places), {}


def select_scatter(call: Call) -> Axes:
    axes, source = call.operand("self"), call.operand("src")
    dim = _dim(call, len(axes))
    call.freeze(axes[dim], "is replaced one by one")
    for own, axis in zip([*axes[:dim], *axes[dim + 1 :]], source, strict=True):
        call.tie(own, axis)
    return axes
