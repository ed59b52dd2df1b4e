"""The quantize step: static 8-bit integers after training.

BatchNorm is folded, `placement` says what is rounded, the ranges are the smallest and largest values seen on
calibration samples, weights are symmetric with one scale an output channel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from models.errors import Code, Failure
from models.spec import QuantizeStep
from models.statuses import Phase
from worker.engine.data.dataset import Split
from worker.engine.graph.integer import (
    Activation,
    Quantization,
    activation_grid,
    integer_network,
    weight_grid,
    weight_integers,
)
from worker.engine.quantize.fold import fold
from worker.engine.quantize.observe import Range, layer_sqnr_db, observe_ranges, ranges_as_tensor
from worker.engine.quantize.placement import Placement, place
from worker.engine.run import Run
from worker.engine.subject import Record, Subject

_CALIBRATION_BATCH = 32
_SQNR_SAMPLES = 8
"""Every layer's output of so many samples is in memory at once."""


def run(subject: Subject, step: QuantizeStep, run: Run) -> dict[str, Any]:
    """Quantize `subject` in place; details for the report: layers made 8-bit, layers kept float and why, SQNR in dB.

    Raises `Failure`: DATASET_BAD without calibration data or when values are not finite on it, UNSUPPORTED_OP when
    the network cannot be folded or nothing in it can be 8-bit.
    """
    split = _calibration_split(run)
    run.phase(Phase.CALIBRATING)
    graph = fold(subject.graph.to("cpu"), subject.example_inputs()).to(run.device)
    placement = place(graph, [choice.match for choice in step.layers])
    if not placement.layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.kept_float.items())[:5])
        raise Failure(
            Code.UNSUPPORTED_OP, f"no layer can be made 8-bit ({reasons or 'no convolution or linear layer'})"
        )
    count = min(step.calibration_samples, len(split))
    batches = _calibration_batches(split, count, run)
    ranges = observe_ranges(graph, frozenset(placement.sources.values()), batches)

    run.phase(Phase.QUANTIZING)
    exact = copy.deepcopy(graph)
    quantization = _apply(graph, placement, ranges)
    inputs = split.sample(_SQNR_SAMPLES, run.spec.seed).to(run.device).inputs
    noise = layer_sqnr_db(exact, integer_network(graph, quantization), inputs)
    subject.graph = graph.cpu()
    subject.quantization = Quantization(
        quantization.activations, quantization.weight_scales, quantization.kept_float, noise
    )
    subject.records.append(_record(step, ranges, subject.quantization))
    return {
        "scheme": step.scheme,
        "calibration_samples": count,
        "calibration_split": split.name,
        "int8_layers": len(placement.layers),
        "kept_float": dict(placement.kept_float),
        "lowest_sqnr_db": min(noise.values()),
        "sqnr_db": noise,
    }


def replay(subject: Subject, record: Record) -> None:
    """Quantize `subject` as `record` says, without data."""
    graph = fold(subject.graph, subject.example_inputs())
    placement = place(graph, record.data["skip"])
    bounds = [(float(low), float(high)) for low, high in record.tensors["ranges"]]
    quantization = _apply(graph, placement, dict(zip(record.data["values"], bounds, strict=True)))
    scales = {name: record.tensors[f"scale.{name}"] for name in placement.layers}
    subject.graph = graph
    subject.quantization = Quantization(
        quantization.activations, scales, quantization.kept_float, record.data["sqnr_db"]
    )


def _record(step: QuantizeStep, ranges: Mapping[str, Range], quantization: Quantization) -> Record:
    """The scales are kept as well as the ranges: weights already on the grid must be read with the same one."""
    return Record(
        step="quantize",
        data={
            "skip": [choice.match for choice in step.layers],
            "values": list(ranges),
            "sqnr_db": dict(quantization.sqnr_db),
        },
        tensors={"ranges": ranges_as_tensor(ranges)}
        | {f"scale.{name}": scale for name, scale in quantization.weight_scales.items()},
    )


def _apply(graph: fx.GraphModule, placement: Placement, ranges: Mapping[str, Range]) -> Quantization:
    """Put the weights of `graph` on their 8-bit grid and say what the grids are."""
    activations: dict[str, Activation] = {}
    for name, users in placement.users.items():
        scale, zero_point = activation_grid(*ranges[placement.sources[name]])
        activations[name] = Activation(scale, zero_point, users)
    scales: dict[str, Tensor] = {}
    for name in placement.layers:
        layer = graph.get_submodule(name)
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, torch.nn.Parameter)
        assert bias is None or isinstance(bias, Tensor)
        calls = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == name]
        smallest = min(activations[str(call.args[0])].scale for call in calls)
        scales[name] = weight_grid(weight, bias, smallest).cpu()
        column = scales[name].to(weight.device).reshape([-1] + [1] * (weight.dim() - 1))
        with torch.no_grad():
            weight.copy_(weight_integers(weight, scales[name]) * column)
    return Quantization(activations, scales, placement.kept_float, {})


def _calibration_split(run: Run) -> Split:
    if run.data is not None:
        for split in (run.data.val, run.data.train):
            if len(split):
                return split
    raise Failure(Code.DATASET_BAD, "quantization needs calibration samples; send a data set, labels are not needed")


def _calibration_batches(split: Split, count: int, run: Run) -> Iterator[tuple[Tensor, ...]]:
    """`count` samples drawn by the run's seed, a batch at a time."""
    done = 0
    generator = torch.Generator().manual_seed(run.spec.seed)
    for batch in split.batches(_CALIBRATION_BATCH, generator=generator):
        inputs = tuple(value[: count - done] for value in batch.to(run.device).inputs)
        yield inputs
        done += len(inputs[0])
        run.progress(done / count)
        if done >= count:
            return
