"""Running a program node by node: on shapes alone, within a budget, or for real."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from worker.engine.failures import first_line, lacks_memory
from worker.engine.graph.cost import operator_cost
from worker.engine.graph.shapes import Sizes, sizes_in, sizes_of
from worker.engine.ingest.native import run_on_shapes
from worker.engine.ingest.program import Program
from worker.engine.ingest.rejected import rejected

MAXIMUM_ACTIVATION_BYTES = 16 << 30
"""For all values of one forward pass of two samples."""
MAXIMUM_MACS = 2e13
"""Multiply-accumulates of the same pass."""


class DoesNotRun(Exception):
    """Says which node, and why."""


class Run(fx.Interpreter):
    """Runs the graph node by node over given tensors. Raises `DoesNotRun`, or `Failure` beyond the budget."""

    def __init__(self, program: Program, tensors: dict[str, Tensor]) -> None:
        super().__init__(nn.Module(), garbage_collect_values=True, graph=program.graph)
        self._tensors = tensors
        self.total_bytes = 0

    def fetch_attr(self, target: str) -> Any:
        return self._tensors[target]

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = self.compute(n)
            if isinstance(result, int) and not -(2**63) <= result < 2**63:
                raise OverflowError("a size has more than 64 bits")
        except Exception as error:
            if lacks_memory(error):
                raise
            layer = n.meta.get("layer")
            place = f"{n.name} in layer {layer}" if layer else n.name
            raise DoesNotRun(f"{place}: {first_line(error)}") from error
        if n.op in ("placeholder", "call_function"):
            self.total_bytes += _bytes(result)
            if self.total_bytes > MAXIMUM_ACTIVATION_BYTES:
                raise rejected(
                    f"the values of one forward pass need more than {MAXIMUM_ACTIVATION_BYTES >> 30} GiB; "
                    "export the network for a smaller input",
                    n.meta.get("layer"),
                )
        return result

    def compute(self, node: fx.Node) -> Any:
        return super().run_node(node)


def _bytes(result: Any) -> int:
    tensors = (value for value in tree_leaves(result) if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Trace(Run):
    """Runs on fake tensors. `shapes` has type and shape of every tensor node, `macs` what computing would take."""

    def __init__(self, program: Program, tensors: dict[str, Tensor]) -> None:
        super().__init__(program, tensors)
        self.shapes: dict[fx.Node, tuple[torch.dtype, Sizes]] = {}
        self.macs = 0

    def compute(self, node: fx.Node) -> Any:
        result = super().compute(node)
        node.meta["sizes"] = sizes_in(result)
        if isinstance(result, Tensor):
            self.shapes[node] = result.dtype, tuple(result.shape)
        self.macs += operator_cost(node, self)
        return result

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if self.macs > MAXIMUM_MACS:
            raise rejected(
                f"one forward pass needs more than {MAXIMUM_MACS:.0e} multiply-accumulates; "
                "export the network for a smaller input",
                n.meta.get("layer"),
            )
        return result

    def sizes(self, node: fx.Node) -> Sizes:
        return sizes_of(node)

    def parameter(self, name: str) -> Sizes:
        return tuple(self._tensors[name].shape)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, OpOverload):
            return run_on_shapes(target, args, kwargs)
        return super().call_function(target, args, kwargs)


def trace(program: Program, batch: int) -> Trace:
    """Run `program` for `batch` samples on shapes alone; nothing is computed."""
    return trace_with(Trace, program, batch)


_Traced = TypeVar("_Traced", bound=Trace)


def trace_with(make: Callable[[Program, dict[str, Tensor]], _Traced], program: Program, batch: int) -> _Traced:
    with _quiet(), FakeTensorMode() as mode:
        fakes: dict[int, FakeTensor] = {}
        tensors: dict[str, Tensor] = {
            name: fakes.setdefault(id(tensor), mode.from_tensor(tensor)) for name, tensor in program.tensors.items()
        }
        run = make(program, tensors)
        inputs = [
            torch.empty([batch if size is None else size for size in info.shape], dtype=getattr(torch, info.dtype))
            for info in program.inputs
        ]
        with torch.no_grad():
            run.run(*inputs)
    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch logs whole stack traces when shapes do not fit; the failure says it in a line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
