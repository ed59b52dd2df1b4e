"""The quantize step: static 8-bit integers after training.

BatchNorm is folded, `placement` says what is rounded, `calibrate` which ranges the integers cover, weights are
symmetric with one scale an output channel.
"""

from __future__ import annotations

import copy
import glob
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from models.errors import Code, Failure
from models.spec import QuantizeStep
from models.statuses import Phase
from worker.engine.graph.integer import Quantization, integer_network
from worker.engine.quantize.bias import correct_biases
from worker.engine.quantize.calibrate import Calibration, Samples, calibrate
from worker.engine.quantize.equalize import equalize
from worker.engine.quantize.fold import fold
from worker.engine.quantize.grids import activations_of, put_on_grid, scales_of, weight_and_bias
from worker.engine.quantize.observe import Range, layer_sqnr_db, ranges_as_tensor
from worker.engine.quantize.placement import Placement, place
from worker.engine.run import Run
from worker.engine.subject import Record, Subject

_SQNR_SAMPLES = 8
"""Every layer's output of so many samples is in memory at once."""


def run(subject: Subject, step: QuantizeStep, run: Run) -> dict[str, Any]:
    """Quantize `subject` in place; details for the report: layers made 8-bit, layers kept float and why, SQNR in dB.

    Raises `Failure`: DATASET_BAD without calibration data or when values are not finite on it, UNSUPPORTED_OP when
    the network cannot be folded or nothing in it can be 8-bit.
    """
    samples = Samples.drawn(run, step.calibration_samples, decide=step.ranges == "auto")
    run.phase(Phase.CALIBRATING)
    graph = fold(subject.graph.to("cpu"), subject.example_inputs())
    pairs = equalize(graph) if step.equalize else []
    graph.to(run.device)
    skipped = _skipped(graph, step)
    placement = place(graph, skipped)
    if not placement.layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.kept_float.items())[:5])
        raise Failure(
            Code.UNSUPPORTED_OP, f"no layer can be made 8-bit ({reasons or 'no convolution or linear layer'})"
        )
    calibration = calibrate(graph, placement, step, samples, run)

    run.phase(Phase.QUANTIZING)
    exact = copy.deepcopy(graph)
    activations = activations_of(placement, calibration.ranges)
    scales = scales_of(graph, placement, activations, step)
    biases: dict[str, Tensor] = {}
    if step.bias_correction:
        biases = correct_biases(graph, activations, scales, samples.calibration_batches(run))
        scales = scales_of(graph, placement, activations, step)
    put_on_grid(graph, scales)
    quantization = Quantization(activations, scales, placement.kept_float, {})
    inputs = samples.calibration.sample(_SQNR_SAMPLES, run.spec.seed).to(run.device).inputs
    noise = layer_sqnr_db(exact, integer_network(graph, quantization), inputs)
    subject.graph = graph.cpu()
    subject.quantization = Quantization(activations, scales, placement.kept_float, noise)
    subject.records.append(_record(step, skipped, calibration.ranges, subject.quantization, biases))
    return _details(step, samples, placement, calibration, noise) | {
        "equalized": [[pair.first, pair.second] for pair in pairs],
        "biases_corrected": len(biases),
    }


def replay(subject: Subject, record: Record) -> None:
    """Quantize `subject` as `record` says, without data."""
    graph = fold(subject.graph, subject.example_inputs())
    if record.data["equalize"]:
        equalize(graph)
    placement = place(graph, record.data["skip"])
    bounds = [(float(low), float(high)) for low, high in record.tensors["ranges"]]
    activations = activations_of(placement, dict(zip(record.data["values"], bounds, strict=True)))
    scales = {name: record.tensors[f"scale.{name}"] for name in placement.layers}
    for name in placement.layers:
        _, bias = weight_and_bias(graph, name)
        if bias is not None and (corrected := record.tensors.get(f"bias.{name}")) is not None:
            with torch.no_grad():
                bias.copy_(corrected)
    put_on_grid(graph, scales)
    subject.graph = graph
    subject.quantization = Quantization(activations, scales, placement.kept_float, record.data["sqnr_db"])


def _skipped(graph: fx.GraphModule, step: QuantizeStep) -> list[str]:
    """Globs of one layer each."""
    return [glob.escape(name) for name, _ in graph.named_modules() if step.is_skipped(name)]


def _details(
    step: QuantizeStep, samples: Samples, placement: Placement, calibration: Calibration, noise: Mapping[str, float]
) -> dict[str, Any]:
    return {
        "scheme": step.scheme,
        "calibration_samples": len(samples.calibration),
        "calibration_split": samples.calibration.name,
        "ranges": calibration.method,
        "ranges_sqnr_db": calibration.tried,
        "int8_layers": len(placement.layers),
        "kept_float": dict(placement.kept_float),
        "lowest_sqnr_db": min(noise.values()),
        "sqnr_db": noise,
    }


def _record(
    step: QuantizeStep,
    skipped: list[str],
    ranges: Mapping[str, Range],
    quantization: Quantization,
    biases: Mapping[str, Tensor],
) -> Record:
    """The scales are kept as well as the ranges: weights already on the grid must be read with the same one."""
    return Record(
        step="quantize",
        data={
            "equalize": step.equalize,
            "skip": skipped,
            "values": list(ranges),
            "sqnr_db": dict(quantization.sqnr_db),
        },
        tensors={"ranges": ranges_as_tensor(ranges)}
        | {f"scale.{name}": scale for name, scale in quantization.weight_scales.items()}
        | {f"bias.{name}": bias for name, bias in biases.items()},
    )
