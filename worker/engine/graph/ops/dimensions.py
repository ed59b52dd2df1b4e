"""Rules of operators that move, add or drop dimensions without touching values."""

from __future__ import annotations

import torch
from torch import fx

from worker.engine.graph.labels import Axes, Refusal
from worker.engine.graph.ops.call import Call, arguments_of
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import sizes_of


def move_dims(call: Call) -> Axes:
    """`permute`, `transpose`, `swapaxes`, `t`, `movedim`."""
    axes = call.operand("self")
    return [axes[dim] for dim in moved_dims(call.node)]


def moved_dims(node: fx.Node) -> list[int]:
    """For each dimension of the result, the dimension of the input it comes from."""
    arguments = arguments_of(node)
    rank = len(sizes_of(arguments["self"]))
    order = list(range(rank))
    operator = getattr(node.target, "__name__", "").split(".")[0]
    if operator == "permute":
        return [dim % rank for dim in arguments["dims"]]
    if operator in ("t", "numpy_T"):
        return order[::-1]
    if operator in ("mT", "adjoint"):
        return [*order[:-2], rank - 1, rank - 2]
    if operator == "movedim":
        return _moved(rank, arguments["source"], arguments["destination"])
    names = ("dim0", "dim1") if "dim0" in arguments else ("axis0", "axis1")
    if names[0] not in arguments:
        raise Refusal("moves dimensions in a way that is not known")
    first, second = (arguments[name] % rank for name in names)
    order[first], order[second] = order[second], order[first]
    return order


def _moved(rank: int, source: int | list[int], destination: int | list[int]) -> list[int]:
    """`movedim`: those named go to their places, the others keep their order."""
    pairs = [(source, destination)] if isinstance(source, int) else zip(source, destination, strict=True)  # type: ignore[arg-type]
    placed = {to % rank: dim % rank for dim, to in pairs}  # type: ignore[operator]
    rest = iter(dim for dim in range(rank) if dim not in placed.values())
    return [placed[place] if place in placed else next(rest) for place in range(rank)]


def diagonal(call: Call) -> Axes:
    """The two dimensions become the last one; of a square, both shrink alike."""
    axes, sizes = call.operand("self"), call.sizes("self")
    first, second = call.argument("dim1") % len(axes), call.argument("dim2") % len(axes)
    if call.argument("offset") or sizes[first] != sizes[second]:
        raise Refusal("takes a diagonal beside the middle")
    met = call.tie(axes[first], axes[second])
    return [*(axis for place, axis in enumerate(axes) if place not in (first, second)), met]


def unsqueeze(call: Call) -> Axes:
    axes = call.operand("self")
    axes.insert(call.argument("dim") % (len(axes) + 1), None)
    return axes


def squeeze(call: Call) -> Axes:
    axes, sizes = call.operand("self"), call.sizes("self")
    dims = call.arguments.get("dim", list(range(len(sizes))))
    gone = {dim % len(sizes) for dim in ([dims] if isinstance(dims, int) else dims)}
    for dim in gone:
        if sizes[dim] == 1:
            call.freeze(axes[dim], "is squeezed away")
    return [axis for dim, axis in enumerate(axes) if not (dim in gone and sizes[dim] == 1)]


def rewrite_squeeze(node: fx.Node, remaining: Remaining) -> None:
    """A dimension of which one index is left was not squeezed before, so it is not now."""
    arguments = arguments_of(node)
    sizes, left = sizes_of(arguments["self"]), remaining.sizes(arguments["self"])
    if any(size > 1 == after for size, after in zip(sizes, left, strict=True)):
        dims = arguments.get("dim", list(range(len(sizes))))
        named = {dim % len(sizes) for dim in ([dims] if isinstance(dims, int) else dims)}
        gone = [dim for dim in sorted(named) if sizes[dim] == 1]
        node.target, node.args, node.kwargs = torch.ops.aten.squeeze.dims, (arguments["self"], gone), {}
