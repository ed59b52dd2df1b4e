"""From a float network to one of static 8-bit integers: everything but training.

BatchNorm is folded, `placement` says what is rounded, `calibrate` which ranges the integers cover, weights are
symmetric with one scale an output channel.
"""

from __future__ import annotations

import copy
import glob
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from models.errors import Code, Failure
from models.spec import Int8Choices
from models.statuses import Phase
from worker.engine.graph.integer import Quantization, integer_network
from worker.engine.quantize.bias import correct_biases
from worker.engine.quantize.calibrate import Samples, calibrate
from worker.engine.quantize.equalize import equalize
from worker.engine.quantize.floor import keep_floor
from worker.engine.quantize.fold import fold
from worker.engine.quantize.grids import activations_of, largest_weight, put_on_grid, scales_of, weight_and_bias
from worker.engine.quantize.observe import Range, layer_sqnr_db, ranges_as_tensor
from worker.engine.quantize.placement import Placement, place
from worker.engine.run import Run
from worker.engine.subject import Record, Subject

RECORD = "quantize"
_CHOSEN = ("skipped by", "kept by")
"""How the reasons of layers begin that could be 8-bit and are not."""
_SQNR_SAMPLES = 8
"""Every layer's output of so many samples is in memory at once."""


@dataclass
class Plan:
    """A folded float `graph` (equalized, its biases corrected, where that was asked for) and how it becomes integers.

    `ranges` are those of the placement's sources, `skipped` globs of one layer each, `largest` the largest integer of a
    weight, `biases` those that were corrected. `details` are for the report.
    """

    graph: fx.GraphModule
    skipped: list[str]
    placement: Placement
    ranges: Mapping[str, Range]
    scales: Mapping[str, Tensor]
    largest: int
    biases: Mapping[str, Tensor]
    details: dict[str, Any]

    def quantization(self, sqnr_db: Mapping[str, float]) -> Quantization:
        activations = activations_of(self.placement, self.ranges)
        return Quantization(activations, self.scales, self.placement.kept_float, sqnr_db)

    def record(self, name: str, equalized: bool, **data: Any) -> Record:
        """Enough to do it again on equal weights. The scales are kept as well as the ranges: weights already on the
        grid must be read with the same one."""
        return Record(
            step=name,
            data={
                "equalize": equalized,
                "skip": self.skipped,
                "values": list(self.ranges),
                "kept_float": dict(self.placement.kept_float),
                "largest": self.largest,
                **data,
            },
            tensors={"ranges": ranges_as_tensor(self.ranges)}
            | {f"scale.{layer}": scale for layer, scale in self.scales.items()}
            | {f"bias.{layer}": bias for layer, bias in self.biases.items()},
        )


def prepare(subject: Subject, step: Int8Choices, run: Run) -> Plan:
    """Decide everything; `subject` stays as it is.

    Raises `Failure`: DATASET_BAD without calibration data or when values are not finite on it, UNSUPPORTED_OP when
    the network cannot be folded or nothing in it can be 8-bit.
    """
    samples = Samples.drawn(run, step.calibration_samples, decide=step.ranges == "auto")
    run.phase(Phase.CALIBRATING)
    graph = fold(subject.graph.to("cpu"), subject.example_inputs())
    pairs = equalize(graph) if step.equalize else []
    graph.to(run.device)
    skipped = [glob.escape(name) for name, _ in graph.named_modules() if step.is_skipped(name)]
    placement = place(graph, skipped)
    if not placement.layers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.kept_float.items())[:5])
        raise Failure(
            Code.UNSUPPORTED_OP, f"no layer can be made 8-bit ({reasons or 'no convolution or linear layer'})"
        )
    calibration = calibrate(graph, placement, step, samples, run)
    floor: dict[str, Any] | None = None
    if step.floor is not None:
        placement, floor = keep_floor(subject, graph, skipped, step, calibration.ranges, run)
        skipped = [glob.escape(name) for name, reason in placement.kept_float.items() if reason.startswith(_CHOSEN)]
    activations = activations_of(placement, calibration.ranges)
    scales = scales_of(graph, placement, activations, step)
    biases: dict[str, Tensor] = {}
    largest = largest_weight(step)
    if step.bias_correction:
        biases = correct_biases(graph, activations, scales, largest, samples.calibration_batches(run))
        scales = scales_of(graph, placement, activations, step)
    details = {
        "scheme": "int8",
        "calibration_samples": len(samples.calibration),
        "calibration_split": samples.calibration.name,
        "ranges": calibration.method,
        "weight_bits": 7 if step.reduce_range else 8,
        "ranges_sqnr_db": calibration.tried,
        "equalized": [[pair.first, pair.second] for pair in pairs],
        "biases_corrected": len(biases),
        "floor": floor,
        "int8_layers": len(placement.layers),
        "kept_float": dict(placement.kept_float),
    }
    return Plan(graph, skipped, placement, calibration.ranges, scales, largest, biases, details)


def take_over(subject: Subject, plan: Plan, step: Int8Choices, run: Run) -> dict[str, Any]:
    """Make `subject` the integers of `plan`; the report's details come back."""
    run.phase(Phase.QUANTIZING)
    exact = copy.deepcopy(plan.graph)
    put_on_grid(plan.graph, plan.scales, plan.largest)
    inputs = Samples.drawn(run, _SQNR_SAMPLES, decide=False).calibration.sample(_SQNR_SAMPLES, run.spec.seed)
    integers = integer_network(plan.graph, plan.quantization({}))
    noise = layer_sqnr_db(exact, integers, inputs.to(run.device).inputs)
    subject.graph = plan.graph.cpu()
    subject.quantization = plan.quantization(noise)
    subject.records.append(plan.record(RECORD, step.equalize, sqnr_db=noise))
    return plan.details | {"lowest_sqnr_db": min(noise.values()), "sqnr_db": noise}


def replayed(subject: Subject, record: Record) -> Plan:
    """The plan of `record`, without data, on a graph that is equal to the one it was made for."""
    graph = fold(subject.graph, subject.example_inputs())
    if record.data["equalize"]:
        equalize(graph)
    placement = replace(place(graph, record.data["skip"]), kept_float=record.data["kept_float"])
    bounds = [(float(low), float(high)) for low, high in record.tensors["ranges"]]
    ranges = dict(zip(record.data["values"], bounds, strict=True))
    scales = {name: record.tensors[f"scale.{name}"] for name in placement.layers}
    biases = {}
    for name in placement.layers:
        _, bias = weight_and_bias(graph, name)
        if bias is not None and (corrected := record.tensors.get(f"bias.{name}")) is not None:
            biases[name] = corrected
            with torch.no_grad():
                bias.copy_(corrected)
    return Plan(graph, record.data["skip"], placement, ranges, scales, record.data["largest"], biases, {})
