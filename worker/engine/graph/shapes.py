"""Concrete sizes: run the network once, on shapes alone where it is large, and note the sizes of every value."""

from __future__ import annotations

import contextlib
import math
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from models.errors import Code, Failure
from worker.engine.failures import as_not_running, first_line

Sizes: TypeAlias = "tuple[int, ...]"


def record_shapes(graph: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> None:
    """Run `graph` on `example_inputs` and write `node.meta["sizes"]`, `node.meta["dtype"]` and `node.meta["number"]`.

    A tensor gives a tuple of ints, a sequence of values a list, anything else `None`; a whole number is kept.
    `node.meta["growing"]` are the dimensions that are longer with one sample more; `node.meta["constant"]` says whether
    the value is the same for every input of these sizes. A large network is not run but traced: about a millisecond an
    operator, whatever it would take to compute.

    Raises `Failure` (network_rejected) when it does not run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True) if _is_large(graph, example_inputs) else None
    with torch.no_grad(), mode or contextlib.nullcontext():
        inputs = example_inputs if mode is None else tuple(map(mode.from_tensor, example_inputs))
        try:
            _Recorder(graph).run(*inputs)
        except (RuntimeError, ValueError, IndexError) as error:
            failure = Failure(Code.NETWORK_REJECTED, f"the layers of the network do not run: {first_line(error)}")
            raise as_not_running(error, failure) from error
        for node in graph.graph.nodes:
            node.meta["growing"] = frozenset()
            made_of = [source.meta["constant"] for source in node.all_input_nodes]
            node.meta["constant"] = node.op != "placeholder" and (node.meta["number"] is not None or all(made_of))
        # One that does not run with another batch has sizes of its own for this one, so none of them grows.
        with contextlib.suppress(RuntimeError, ValueError, IndexError):
            _Grower(graph).run(*(torch.cat([value, value[:1]]) if value.dim() else value for value in inputs))


_LARGE = 10**10


def _is_large(graph: fx.GraphModule, example_inputs: tuple[Tensor, ...]) -> bool:
    """Whether weights times values of the input, which products seldom exceed, come to seconds of computing."""
    weights = sum(parameter.numel() for parameter in graph.parameters())
    return weights * max((math.prod(tensor.shape) for tensor in example_inputs), default=0) > _LARGE


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
        n.meta["sizes"] = sizes_in(result)
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


def sizes_in(value: Any) -> Any:
    """What `node.meta["sizes"]` is for a node that gives `value`."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [sizes_in(item) for item in value]
    return None
