"""The first trial of a network: on shapes alone, within a budget, at several batch sizes; then once for real."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models.inspection import TensorInfo
from worker.engine.ingest.program import Program
from worker.engine.ingest.recurrent import check_recurrent
from worker.engine.ingest.rejected import rejected

MAXIMUM_ACTIVATION_BYTES = 16 << 30
"""For all values of one forward pass of two samples."""
MAXIMUM_MACS = 2e13
"""Multiply-accumulates of the same pass, in matrix products, convolutions and attention."""
TRIED_BATCHES = (2, 3)


def check_batch(program: Program) -> Program:
    """The program with its output shapes filled in and, where that is sound, its batch dimension set free.

    Raises `Failure` (network_rejected) when the network does not run, is too large, or is bound to one batch size.
    """
    fixed = [info for info in program.inputs if info.shape[:1] != [None]]
    numbers = [info.name for info in program.inputs if not info.shape]
    if numbers:
        raise rejected(f"the input {numbers[0]} is a single number; dimension 0 of every input must be the batch")
    if not fixed:
        try:
            first, second = (_shapes(program, batch) for batch in TRIED_BATCHES)
            _run(program, [_random(info, TRIED_BATCHES[0]) for info in program.inputs])
        except _DoesNotRun as error:
            raise rejected(f"the network does not run: {error}") from error
        return replace(program, outputs=_outputs(program, first, second))
    sizes = {info.shape[0] for info in fixed}
    if len(sizes) > 1 or len(fixed) != len(program.inputs):
        raise rejected(f"dimension 0 of the input {fixed[0].name} is fixed to {fixed[0].shape[0]}; {_DYNAMIC}")
    return _set_free(program, int(next(iter(sizes)) or 1))


_DYNAMIC = (
    "export with a dynamic batch: `dynamic_shapes` with `{0: torch.export.Dim.AUTO}` for every input, "
    "as `modelpress prepare` does"
)


def _set_free(program: Program, exported: int) -> Program:
    """A network exported with one batch size: free when other sizes really run and give each sample the same output."""
    free = replace(
        program, inputs=tuple(info.model_copy(update={"shape": [None, *info.shape[1:]]}) for info in program.inputs)
    )
    try:
        same, other = _shapes(free, exported), _shapes(free, exported + 1)
        outputs = _outputs(program, same, other)
        free_outputs = all(info.shape[:1] == [None] for info in outputs)
        independent = free_outputs and _independent(free, exported)
    except _DoesNotRun as error:
        raise rejected(f"the network only runs with a batch of {exported} ({error}); {_DYNAMIC}") from error
    if not independent:
        raise rejected(f"the network gives other results unless the batch is {exported}; {_DYNAMIC}")
    for node, info in zip((n for n in program.graph.nodes if n.op == "placeholder"), free.inputs, strict=True):
        node.meta["shape"] = info.shape
    return replace(free, outputs=outputs)


class _DoesNotRun(Exception):
    pass


class _Run(fx.Interpreter):
    """Runs the graph node by node over given tensors."""

    def __init__(self, program: Program, tensors: dict[str, Tensor]) -> None:
        super().__init__(nn.Module(), garbage_collect_values=True, graph=program.graph)
        self._tensors = tensors
        self.total_bytes = 0

    def fetch_attr(self, target: str) -> Any:
        return self._tensors[target]

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception as error:
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                raise
            layer = n.meta.get("layer")
            place = f"{n.name} in layer {layer}" if layer else n.name
            raise _DoesNotRun(
                f"{place}: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
            ) from error
        if n.op == "call_function":
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    self.total_bytes += value.numel() * value.element_size()
            if self.total_bytes > MAXIMUM_ACTIVATION_BYTES:
                raise rejected(
                    f"the values of one forward pass need more than {MAXIMUM_ACTIVATION_BYTES >> 30} GiB; "
                    "export the network for a smaller input",
                    n.meta.get("layer"),
                )
        return result


Shapes = dict[fx.Node, tuple[torch.dtype, tuple[int, ...]]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch logs whole stack traces when shapes do not fit; the failure says it in a line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _shapes(program: Program, batch: int) -> Shapes:
    """Dtype and shape of every tensor node for `batch` samples; nothing is computed."""
    with _quiet(), FakeTensorMode() as mode:
        fakes: dict[int, FakeTensor] = {}
        tensors: dict[str, Tensor] = {
            name: fakes.setdefault(id(tensor), mode.from_tensor(tensor)) for name, tensor in program.tensors.items()
        }
        run = _Shapes(program, tensors)
        inputs = [
            torch.empty([batch if size is None else size for size in info.shape], dtype=getattr(torch, info.dtype))
            for info in program.inputs
        ]
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            run.run(*inputs)
    if counter.get_total_flops() / 2 > MAXIMUM_MACS:
        raise rejected(
            f"one forward pass needs more than {MAXIMUM_MACS:.0e} multiply-accumulates; "
            "export the network for a smaller input"
        )
    return run.shapes


class _Shapes(_Run):
    def __init__(self, program: Program, tensors: dict[str, Tensor]) -> None:
        super().__init__(program, tensors)
        self.shapes: Shapes = {}

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(target, OpOverload):
            parameters = target._schema.arguments
            complete = {parameter.name: value for parameter, value in zip(parameters, args, strict=False)} | kwargs
            wrong = check_recurrent(f"{target.overloadpacket.__name__}.{target._overloadname}", complete)
            if wrong is not None:
                raise ValueError(wrong)
        return super().call_function(target, args, kwargs)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = (result.dtype, tuple(result.shape))
        return result


def _outputs(program: Program, first: Shapes, second: Shapes) -> tuple[TensorInfo, ...]:
    """Write `shape` and `dtype` on every node; sizes that differ between the two runs vary. Returns the outputs."""
    for node, (dtype, shape) in first.items():
        varying = [size if size == again else None for size, again in zip(shape, second[node][1], strict=True)]
        node.meta["shape"], node.meta["dtype"] = varying, dtype
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    values = [value for value in tree_leaves(output.args[0]) if value is not None]
    return tuple(
        TensorInfo(name=info.name, dtype=str(node.meta["dtype"]).removeprefix("torch."), shape=node.meta["shape"])
        for info, node in zip(program.outputs, values, strict=True)
    )


def _run(program: Program, inputs: list[Tensor]) -> list[Tensor]:
    """Really run the network; shapes were tried before. Some native checks only happen here."""
    with torch.no_grad():
        outputs = _Run(program, program.tensors).run(*[tensor.clone() for tensor in inputs])
    return [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]


def _independent(program: Program, exported: int) -> bool:
    """Whether the first samples get the same outputs in a larger batch."""
    inputs = [_random(info, exported + 1) for info in program.inputs]
    larger = _run(program, inputs)
    exact = _run(program, [tensor[:exported] for tensor in inputs])
    return all(
        torch.allclose(first.double(), second[:exported].double(), rtol=1e-4, atol=1e-5, equal_nan=True)
        for first, second in zip(exact, larger, strict=True)
    )


def _random(info: TensorInfo, batch: int) -> Tensor:
    """Normal floats; zeros and ones for integers, which are valid indices into anything."""
    generator = torch.Generator().manual_seed(0)
    shape = [batch, *(size or 1 for size in info.shape[1:])]
    dtype: torch.dtype = getattr(torch, info.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
