"""The quantize steps that make weights smaller where they are stored: half precision, bfloat16, 8-bit floats, or 8-bit
integers with one scale a row. The network computes in single precision, with the values that were stored.

Every matrix or kernel is stored so, whichever layer has it, and those that stand alone in the graph; integers and 8-bit
floats are for those of layers alone. Biases and norms, which have one dimension, stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx

from models.errors import Code, Failure
from models.spec import FloatStep, Fp8Step, StoredStep
from models.statuses import Phase
from worker.engine.graph.integer import weight_grid, weight_integers
from worker.engine.graph.stored import Stored
from worker.engine.quantize.fold import fold
from worker.engine.quantize.observe import layer_sqnr_db
from worker.engine.run import Run
from worker.engine.subject import Record, Subject

_SQNR_SAMPLES = 8
_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
Step = StoredStep | FloatStep | Fp8Step


def run(subject: Subject, step: Step, run: Run) -> dict[str, Any]:
    """Round the weights of `subject` in place; details for the report: how many are stored in how many bits, layers
    kept as they are and why, and with data the SQNR in dB of each layer's output.

    Raises `Failure(UNSUPPORTED_OP)` when the network cannot be folded or nothing in it can be stored so.
    """
    run.phase(Phase.QUANTIZING)
    exact = fold(subject.graph.to("cpu"), subject.example_inputs())
    subject.graph = exact if run.data is None else copy.deepcopy(exact)  # without data no noise is measured
    kept_float = {
        layer: "skipped by `layers`"
        for layer in dict.fromkeys(_layer_of(name) for name, _ in _candidates(exact, alone=isinstance(step, FloatStep)))
        if any(fnmatchcase(layer, choice.match) for choice in step.layers)
    }
    kept_float = store_weights(subject, step, kept_float, exact, run)
    if not subject.stored:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(kept_float.items())[:5])
        raise Failure(Code.UNSUPPORTED_OP, f"no weight can be stored as {step.scheme} ({reasons or 'there is none'})")
    return {
        "scheme": step.scheme,
        "bits": next(iter(subject.stored.values())).bits,
        "stored_weights": len(subject.stored),
        "kept_float": kept_float,
        "lowest_sqnr_db": min(subject.stored_sqnr_db.values(), default=None),
        "sqnr_db": subject.stored_sqnr_db,
    }


def store_weights(
    subject: Subject, step: Step, kept_float: Mapping[str, str], exact: fx.GraphModule, run: Run
) -> dict[str, str]:
    """Store the weights of the folded `subject.graph` as `step` says, but for those of `kept_float` (layer: why),
    beside what is quantized already; `kept_float` and layers that cannot be stored come back. `exact` is the float
    network, for the noise, which is measured where there is data."""
    kept = dict(kept_float)
    store = _storage(step)
    stored: dict[str, Stored] = {}
    for name, weight in _candidates(subject.graph, alone=isinstance(step, FloatStep)):
        layer = _layer_of(name)
        found = store(weight) if layer not in kept_float else None
        if found is not None and bool(torch.isfinite(found.values()).all()):
            stored[name] = found
        elif found is not None:
            largest = torch.finfo(found.numbers.dtype).max
            kept[layer] = (
                f"it has a weight of {weight.abs().max().item():.6g}, beyond {largest:.6g}, the largest {step.scheme}"
            )
    _round(subject.graph, stored)
    subject.stored = stored
    if run.data is not None and stored:
        inputs = run.data.val.sample(_SQNR_SAMPLES, run.spec.seed).inputs
        subject.stored_sqnr_db = layer_sqnr_db(exact, _marked(subject, stored), inputs)
    subject.records.append(_record(subject, kept))
    return kept


def replay(subject: Subject, record: Record) -> None:
    """Store the weights of `subject` as `record` says."""
    subject.graph = fold(subject.graph, subject.example_inputs())
    subject.stored = {
        name: Stored(*(record.tensors.get(f"{part}.{name}") for part in ("numbers", "scale", "table")))  # type: ignore[arg-type]
        for name in record.data["stored"]
    }
    subject.stored_sqnr_db = record.data["sqnr_db"]
    _round(subject.graph, subject.stored)


def _record(subject: Subject, kept_float: Mapping[str, str]) -> Record:
    tensors = {
        f"{part}.{name}": tensor
        for name, each in subject.stored.items()
        for part, tensor in (("numbers", each.numbers), ("scale", each.scale), ("table", each.table))
        if tensor is not None
    }
    data = {"stored": list(subject.stored), "kept_float": dict(kept_float), "sqnr_db": dict(subject.stored_sqnr_db)}
    return Record("quantize stored", data, tensors)


def _candidates(graph: fx.GraphModule, *, alone: bool) -> Sequence[tuple[str, Tensor]]:
    """Single-precision weights of two dimensions or more, each once; those that stand alone in the graph if asked."""
    called = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    return [
        (name, weight.detach())
        for name, weight in graph.named_parameters()
        if weight.dim() > 1 and weight.dtype == torch.float32 and (alone or name.rpartition(".")[0] in called)
    ]


def _storage(step: Step) -> Callable[[Tensor], Stored]:
    if isinstance(step, StoredStep):
        return _as_integers
    if isinstance(step, Fp8Step):
        return partial(_as_small_floats, dtype=_DTYPES[step.format])
    return partial(_as_floats, dtype=_DTYPES[step.scheme])


def _as_floats(weight: Tensor, dtype: torch.dtype) -> Stored:
    return Stored(weight.to(dtype))


def _as_integers(weight: Tensor) -> Stored:
    """One symmetric scale a row: largest magnitude / 127."""
    scale = weight_grid(weight, None, 1.0)
    return Stored(weight_integers(weight, scale), scale)


def _as_small_floats(weight: Tensor, dtype: torch.dtype) -> Stored:
    """Bit patterns, and one scale a row that brings its largest magnitude to the largest number of `dtype`."""
    table = _numbers_of(dtype)
    largest = table[torch.isfinite(table)].max()
    scale = weight.flatten(1).abs().amax(1) / largest
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
    scaled = weight / scale.reshape([-1] + [1] * (weight.dim() - 1))
    # Each has a table of its own, for a checkpoint holds no tensor twice.
    return Stored(scaled.clamp(-largest, largest).to(dtype).view(torch.uint8), scale, table.clone())


@cache
def _numbers_of(dtype: torch.dtype) -> Tensor:
    """What each of the 256 bit patterns stands for; those that stand for none, and are never stored, as 0."""
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32)
    return torch.where(torch.isfinite(numbers), numbers, 0.0)


def _round(graph: fx.GraphModule, stored: Mapping[str, Stored]) -> None:
    for name, each in stored.items():
        with torch.no_grad():
            graph.get_parameter(name).copy_(each.values())


def _marked(subject: Subject, stored: Mapping[str, Stored]) -> fx.GraphModule:
    """The network in which each call of a layer of stored weights carries its name, and no other."""
    held = {id(subject.graph.get_parameter(name)) for name in stored}
    marked = copy.deepcopy(subject.network())
    for node in marked.graph.nodes:
        node.meta.pop("int8_layer", None)
        if node.op == "call_module":
            weights = subject.graph.get_submodule(node.target).parameters(recurse=False)
            if any(id(weight) in held for weight in weights):
                node.meta["int8_layer"] = node.target
    return marked


def _layer_of(parameter: str) -> str:
    return parameter.rpartition(".")[0] or parameter
