"""Concrete sizes: run the network once and note the sizes of every value."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

Sizes: TypeAlias = "tuple[int, ...]"


def record_shapes(graph: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Run `graph` on `example_inputs` and write `node.meta["sizes"]`, `node.meta["dtype"]` and `node.meta["number"]`.

    A tensor gives a tuple of ints, a sequence of values a list, anything else `None`; a whole number is kept.
    """
    with torch.no_grad():
        _Recorder(graph).run(*example_inputs)


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


def _sizes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_sizes(item) for item in value]
    return None
