"""Concrete sizes: run the network once and note the sizes of every value."""

from __future__ import annotations

import contextlib
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Sizes: TypeAlias = "tuple[int, ...]"


def record_shapes(graph: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Run `graph` on `example_inputs` and write `node.meta["sizes"]`, `node.meta["dtype"]` and `node.meta["number"]`.

    A tensor gives a tuple of ints, a sequence of values a list, anything else `None`; a whole number is kept.
    `node.meta["growing"]` are the dimensions that are longer with one sample more.
    """
    with torch.no_grad():
        _Recorder(graph).run(*example_inputs)
        for node in graph.graph.nodes:
            node.meta["growing"] = frozenset()
        # One that does not run with another batch has sizes of its own for this one, so none of them grows.
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            _Grower(graph).run(*(torch.cat([value, value[:1]]) if value.dim() else value for value in example_inputs))


def sizes_of(node: fx.Node) -> Sizes:
    """Sizes of the tensor that `node` gives. The network was run before."""
    sizes = node.meta["sizes"]
    if not isinstance(sizes, tuple):
        raise TypeError(f"{node.name} is not a tensor")
    return sizes


def is_tensor(node: Any) -> bool:
    return isinstance(node, fx.Node) and isinstance(node.meta.get("sizes"), tuple)


class _Recorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        n.meta["sizes"] = _sizes(result)
        n.meta["dtype"] = result.dtype if isinstance(result, Tensor) else None
        n.meta["number"] = result if isinstance(result, int) else None
        return result


class _Grower(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and isinstance(n.meta["sizes"], tuple):
            pairs = zip(n.meta["sizes"], result.shape, strict=True)
            n.meta["growing"] = frozenset(dim for dim, (one, other) in enumerate(pairs) if one != other)
        return result


def _sizes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_sizes(item) for item in value]
    return None
