"""Operators that say in one word what others say in two: read as those, which have rules.

Each function leaves the node alone where it says something else (a stack of vectors, the norm of a matrix); without
rules of its own it then keeps whole what it is given.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from worker.engine.graph.ops.call import arguments_of, call_before

aten = torch.ops.aten


def _stacked(dim: int) -> Callable[[fx.Node], None]:
    """`hstack`, `vstack` …: concatenation along `dim` of tensors that have this dimension and another."""

    def compose(node: fx.Node) -> None:
        tensors = arguments_of(node)["tensors"]
        if all(_rank(tensor) > max(dim, 1) for tensor in tensors):
            _replace(node, aten.cat.default, tensors, dim)

    return compose


def _divided(dim: int) -> Callable[[fx.Node], None]:
    """`hsplit`, `vsplit`, `dsplit`: into so many parts, or at these indices."""

    def compose(node: fx.Node) -> None:
        arguments = arguments_of(node)
        if _rank(arguments["self"]) > max(dim, 1):
            sections = "sections" in arguments
            target = aten.tensor_split.sections if sections else aten.tensor_split.indices
            _replace(node, target, arguments["self"], arguments["sections" if sections else "indices"], dim)

    return compose


def _flipped(dim: int) -> Callable[[fx.Node], None]:
    return lambda node: _replace(node, aten.flip.default, arguments_of(node)["self"], [dim])


def _ravelled(node: fx.Node) -> None:
    _replace(node, aten.flatten.using_ints, arguments_of(node)["self"], 0, -1)


def _turned(node: fx.Node) -> None:
    """`rot90`: a quarter is a flip of one dimension and both exchanged."""
    arguments = arguments_of(node)
    source, (first, second), quarters = arguments["self"], arguments["dims"], arguments["k"] % 4
    if quarters == 0:
        _replace(node, aten.clone.default, source)
    elif quarters == 2:
        _replace(node, aten.flip.default, source, [first, second])
    else:
        with node.graph.inserting_before(node):
            flipped = node.graph.call_function(aten.flip.default, (source, [second if quarters == 1 else first]))
        flipped.meta = dict(source.meta)
        _replace(node, aten.transpose.int, flipped, first, second)


def _norm(node: fx.Node) -> None:
    """`linalg_norm` of vectors, or of all values of two dimensions."""
    arguments = arguments_of(node)
    order, dims = arguments["ord"], arguments["dim"]
    if order is None or (dims is not None and len(dims) == 1):
        given = (arguments["self"], 2 if order is None else order, dims, arguments["keepdim"])
        _replace(node, aten.linalg_vector_norm.default, *given, dtype=arguments["dtype"])


def _distance(node: fx.Node) -> None:
    arguments = arguments_of(node)
    with node.graph.inserting_before(node):
        between = node.graph.call_function(aten.sub.Tensor, (arguments["self"], arguments["other"]))
    between.meta = dict(arguments["self"].meta)
    _replace(node, aten.linalg_vector_norm.default, between, arguments["p"])


def _extreme(target: Any) -> Callable[[fx.Node], None]:
    """`max` and `min` of all values."""
    return lambda node: _replace(node, target, arguments_of(node)["self"], [])


def _both_extremes(node: fx.Node) -> None:
    arguments = arguments_of(node)
    dims = [] if arguments["dim"] is None else [arguments["dim"]]
    for item in _items(node):
        target = (aten.amin.default, aten.amax.default)[item.args[1]]  # type: ignore[index]
        _replace(item, target, arguments["self"], dims, arguments["keepdim"])


def _count(node: fx.Node) -> None:
    """`count_nonzero`."""
    arguments = arguments_of(node)
    with node.graph.inserting_before(node):
        other = node.graph.call_function(aten.ne.Scalar, (arguments["self"], 0))
    other.meta = {**arguments["self"].meta, "dtype": torch.bool}
    _replace(node, aten.sum.dim_IntList, other, arguments["dim"])


def _leaky(node: fx.Node) -> None:
    """`rrelu` in eval mode: the mean of its slopes."""
    arguments = arguments_of(node)
    if not arguments["training"]:
        slope = (arguments["lower"] + arguments["upper"]) / 2
        _replace(node, aten.leaky_relu.default, arguments["self"], slope)


def _at_least(rank: int) -> Callable[[fx.Node], None]:
    """`atleast_1d` … of one tensor, or of each of a list. The third dimension comes last, the others first."""

    def compose(node: fx.Node) -> None:
        arguments = arguments_of(node)
        several = "tensors" in arguments
        for item in _items(node) if several else [node]:
            source = arguments["tensors"][item.args[1]] if several else arguments["self"]
            while "shape" in source.meta and _rank(source) < rank:
                shape = list(source.meta["shape"])
                dim = len(shape) if len(shape) == 2 else 0
                shape.insert(dim, 1)
                source = call_before(item, shape, aten.unsqueeze.default, source, dim)
            if "shape" in source.meta:
                _replace(item, aten.alias.default, source)

    return compose


def _chained(node: fx.Node) -> None:
    """`linalg_multi_dot`, `chain_matmul`: one product after the other, in the order that multiplies least."""
    factors: list[fx.Node] = next(iter(arguments_of(node).values()))
    sizes = [factor.meta.get("shape", [None]) for factor in factors]
    ends = [*(1 if len(shape) == 1 and place == 0 else shape[0] for place, shape in enumerate(sizes)), sizes[-1][-1]]
    edges = [size if isinstance(size, int) else 1 for size in ends]  # what varies is the batch, and the same for all

    @functools.cache
    def least(first: int, last: int) -> tuple[int, int]:
        """Multiplications of the factors from `first` to `last`, and the last of those that come first."""
        if first == last:
            return 0, first
        return min(
            (least(first, k)[0] + least(k + 1, last)[0] + edges[first] * edges[k + 1] * edges[last + 1], k)
            for k in range(first, last)
        )

    def product(first: int, last: int) -> fx.Node:
        if first == last:
            return factors[first]
        middle = least(first, last)[1]
        left, right = product(first, middle), product(middle + 1, last)
        shape = [*left.meta.get("shape", [])[:-1], *right.meta.get("shape", [])[1:]]
        return call_before(node, shape, aten.matmul.default, left, right)

    _replace(node, aten.alias.default, product(0, len(factors) - 1))


def _in_place(target: Any) -> Callable[[fx.Node], None]:
    """A view that takes the place of its source: a view, unless somebody goes on with the source."""

    def compose(node: fx.Node) -> None:
        arguments = arguments_of(node)
        if not any(node < user for user in arguments["self"].users):
            _replace(node, target, *arguments.values())
            node.graph.erase_node(node)  # It writes, so it would not count as dead.

    return compose


def _items(node: fx.Node) -> list[fx.Node]:
    """What picks one of the results."""
    return [user for user in node.users if user.target is operator.getitem]


def _rank(tensor: fx.Node) -> int:
    """0 where the file does not say."""
    return len(tensor.meta.get("shape", ()))


def _replace(node: fx.Node, target: Any, *args: Any, **kwargs: Any) -> None:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args, kwargs)
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)


SPELLED: dict[str, Callable[[fx.Node], None]] = {
    "aminmax.default": _both_extremes,
    "atleast_1d.Sequence": _at_least(1),
    "atleast_1d.default": _at_least(1),
    "atleast_2d.Sequence": _at_least(2),
    "atleast_2d.default": _at_least(2),
    "atleast_3d.Sequence": _at_least(3),
    "atleast_3d.default": _at_least(3),
    "chain_matmul.default": _chained,
    "column_stack.default": _stacked(1),
    "count_nonzero.dim_IntList": _count,
    "dist.default": _distance,
    "dsplit.array": _divided(2),
    "dsplit.int": _divided(2),
    "dstack.default": _stacked(2),
    "fliplr.default": _flipped(1),
    "flipud.default": _flipped(0),
    "hsplit.array": _divided(1),
    "hsplit.int": _divided(1),
    "hstack.default": _stacked(1),
    "linalg_multi_dot.default": _chained,
    "linalg_norm.default": _norm,
    "max.default": _extreme(aten.amax.default),
    "min.default": _extreme(aten.amin.default),
    "ravel.default": _ravelled,
    "rot90.default": _turned,
    "row_stack.default": _stacked(0),
    "rrelu.default": _leaky,
    "squeeze_.default": _in_place(aten.squeeze.default),
    "squeeze_.dim": _in_place(aten.squeeze.dim),
    "squeeze_.dims": _in_place(aten.squeeze.dims),
    "swapaxes_.default": _in_place(aten.transpose.int),
    "swapdims_.default": _in_place(aten.transpose.int),
    "t_.default": _in_place(aten.t.default),
    "transpose_.default": _in_place(aten.transpose.int),
    "unsqueeze_.default": _in_place(aten.unsqueeze.default),
    "vsplit.array": _divided(0),
    "vsplit.int": _divided(0),
    "vstack.default": _stacked(0),
}
