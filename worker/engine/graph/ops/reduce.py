"""Rules of reductions and pooling."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from worker.engine.graph.labels import Axes, Value
from worker.engine.graph.ops.call import Call, arguments_of
from worker.engine.graph.shapes import sizes_of


def reduction(call: Call) -> Value:
    """`mean`, `sum`, `amax`, `var` …: after a cut they run over the channels that stay, as a normalisation does."""
    axes = call.operand("self")
    dims = reduced_dims(call.node)
    sizes = call.node.meta["sizes"]
    kept_dims = len(sizes if isinstance(sizes, tuple) else sizes[0]) == len(axes)
    result: Axes = [None if dim in dims else axis for dim, axis in enumerate(axes) if kept_dims or dim not in dims]
    return result if isinstance(sizes, tuple) else tuple(list(result) for _ in sizes)


def reduced_dims(node: fx.Node) -> frozenset[int]:
    """The dimensions a reduction runs over."""
    arguments = arguments_of(node)
    rank = len(sizes_of(arguments["self"]))
    dims: Any = arguments.get("dim")
    none_is_all = getattr(node.target, "__name__", "") not in ("any.dims", "all.dims")
    if dims is None or (dims == [] and none_is_all):
        return frozenset(range(rank))
    return frozenset(dim % rank for dim in ([dims] if isinstance(dims, int) else dims))


def position(call: Call) -> Value:
    """`argmax`, `max`, `sort`: positions change when channels go, so the dimension stays whole where they are used."""
    dims = reduced_dims(call.node)
    axes = call.operand("self") if only_values_used(call.node) else call.whole("self", list(dims))
    sizes = call.node.meta["sizes"]
    kept_dims = len(sizes if isinstance(sizes, tuple) else sizes[0]) == len(axes)
    result: Axes = [None if dim in dims else axis for dim, axis in enumerate(axes) if kept_dims or dim not in dims]
    return result if isinstance(sizes, tuple) else (result, list(result))


def only_values_used(node: fx.Node) -> bool:
    """Whether an operator that gives a reduction and positions is only asked for the reduction."""
    gives_both = getattr(node.target, "__name__", "") in ("max.dim", "min.dim")
    return gives_both and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def pool(call: Call, spatial: int) -> Value:
    """The last `spatial` dimensions are pooled or resized; channels pass. Some poolings also give positions."""
    axes = call.whole("self" if "self" in call.arguments else "input", range(-spatial, 0))
    result: Axes = [*axes[:-spatial], *[None] * spatial]
    return result if isinstance(call.node.meta["sizes"], tuple) else (result, list(result))


def pool1d(call: Call) -> Value:
    return pool(call, 1)


def pool2d(call: Call) -> Value:
    return pool(call, 2)


def pool3d(call: Call) -> Value:
    return pool(call, 3)
