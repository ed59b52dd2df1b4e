"""The first trial of a network: on shapes alone, within a budget, at several batch sizes; then once for real."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from models.inspection import Notice, TensorInfo
from worker.engine.ingest.program import Program
from worker.engine.ingest.rejected import rejected
from worker.engine.ingest.stretch import stretched
from worker.engine.ingest.trace import DoesNotRun, Run, Trace, trace

MAXIMUM_MACS_TO_TRY = 4e11
"""Multiply-accumulates of a pass that is run for real. One thread took 3.8e9 depthwise ones a second, the slowest kind,
and up to 9e10 others: two minutes at most, of the ten that an inspection has."""
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
            first, second = (trace(program, batch) for batch in TRIED_BATCHES)
            if first.macs <= MAXIMUM_MACS_TO_TRY:
                _run(program, [_random(info, TRIED_BATCHES[0]) for info in program.inputs])
            return replace(program, outputs=_outputs(program, first, second))
        except DoesNotRun as error:
            raise rejected(f"the network does not run: {error}") from error
    sizes = {info.shape[0] for info in fixed}
    if len(sizes) > 1 or len(fixed) != len(program.inputs):
        raise rejected(f"dimension 0 of the input {fixed[0].name} is fixed to {fixed[0].shape[0]}; {_DYNAMIC}")
    return _set_free(program, int(next(iter(sizes)) or 1))


_DYNAMIC = (
    "export with a dynamic batch: `dynamic_shapes` with `{0: torch.export.Dim.AUTO}` for every input, "
    "as `modelpress prepare` does"
)


def _set_free(program: Program, exported: int) -> Program:
    """A network exported with one batch size: free when other sizes really run and give each sample the same output,
    as it is or once the sizes written in it are computed from the batch."""
    inputs = tuple(info.model_copy(update={"shape": [None, *info.shape[1:]]}) for info in program.inputs)
    free = replace(program, inputs=inputs)
    try:
        return _proved(free, exported)
    except DoesNotRun as error:
        problem = str(error)
    for constants in (True, False):
        with contextlib.suppress(DoesNotRun):
            proved = _proved(stretched(free, exported, constants), exported)
            return replace(proved, warnings=(*proved.warnings, _set_free_notice(exported)))
    raise rejected(f"the network only runs with a batch of {exported}: {problem}; {_DYNAMIC}")


def _set_free_notice(exported: int) -> Notice:
    message = (
        f"The file was exported for a batch of {exported}. The sizes written in it are computed from the batch now; "
        "a larger batch was tried and gave every sample the same results."
    )
    return Notice(code="batch_set_free", message=message)


def _proved(free: Program, exported: int) -> Program:
    """Raises `DoesNotRun` unless the network gives every sample what it gives it in the batch it was exported with."""
    same, other = trace(free, exported), trace(free, exported + 1)
    outputs = _outputs(free, same, other)
    if any(info.shape[:1] != [None] for info in outputs):
        raise DoesNotRun("its outputs do not grow with the batch")
    if other.macs > MAXIMUM_MACS_TO_TRY:
        raise DoesNotRun("it is too large to try other sizes")
    if not _independent(free, exported):
        raise DoesNotRun("it gives other results in another batch")
    for node, info in zip((n for n in free.graph.nodes if n.op == "placeholder"), free.inputs, strict=True):
        node.meta["shape"] = info.shape
    return replace(free, outputs=outputs)


def _outputs(program: Program, first: Trace, second: Trace) -> tuple[TensorInfo, ...]:
    """Write `shape` and `dtype` on every node; sizes that differ between the two runs vary. Returns the outputs."""
    for node, (dtype, shape) in first.shapes.items():
        again = second.shapes[node][1]
        if len(again) != len(shape):
            raise DoesNotRun(f"{node.name} has another number of dimensions in another batch")
        varying = [size if size == other else None for size, other in zip(shape, again, strict=True)]
        node.meta["shape"], node.meta["dtype"] = varying, dtype
    (output,) = [node for node in program.graph.nodes if node.op == "output"]
    values = [value for value in tree_leaves(output.args[0]) if value is not None]
    if any(value.meta["dtype"].is_complex for value in values):
        raise rejected("an output is complex; return its real and imaginary parts, with `torch.view_as_real`")
    return tuple(
        TensorInfo(name=info.name, dtype=str(node.meta["dtype"]).removeprefix("torch."), shape=node.meta["shape"])
        for info, node in zip(program.outputs, values, strict=True)
    )


def _run(program: Program, inputs: list[Tensor]) -> list[Tensor]:
    """Really run the network; shapes were tried before. Some native checks only happen here."""
    with torch.no_grad():
        outputs = Run(program, program.tensors).run(*[tensor.clone() for tensor in inputs])
    return [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]


def _independent(program: Program, exported: int) -> bool:
    """Whether samples, the first ones and the last ones, get the same outputs in a larger batch."""
    inputs = [_random(info, exported + 1) for info in program.inputs]
    larger = _run(program, inputs)
    for part in (slice(0, exported), slice(1, exported + 1)):
        exact = _run(program, [tensor[part] for tensor in inputs])
        for few, many in zip(exact, larger, strict=True):
            if few.shape != many[part].shape or not _close(few, many[part]):
                return False
    return True


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _random(info: TensorInfo, batch: int) -> Tensor:
    """Normal floats; zeros and ones for integers, which are valid indices into anything."""
    generator = torch.Generator().manual_seed(0)
    shape = [batch, *(size or 1 for size in info.shape[1:])]
    dtype: torch.dtype = getattr(torch, info.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
