"""The ranges of a network's values: from which samples, and by which method."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, fx

from models.errors import Code, Failure
from models.spec import Int8Choices
from models.spec_int8 import PERCENTILE
from worker.engine.data.dataset import Split
from worker.engine.graph.integer import Quantization, integer_network
from worker.engine.measure.compare import outputs_of, sqnr_db
from worker.engine.quantize.grids import activations_of, largest_weight, put_on_grid, scales_of, values_read
from worker.engine.quantize.histogram import Histogram, observe_histograms
from worker.engine.quantize.observe import Inputs, Range, observe_ranges
from worker.engine.quantize.placement import Placement
from worker.engine.quantize.ranges import Method, narrow
from worker.engine.run import Run

_BATCH = 32
_HELD_OUT = 64
_METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Samples:
    """`held_out` are none of those that are calibrated on; empty where nothing is decided by them."""

    calibration: Split
    held_out: Split

    @classmethod
    def drawn(cls, run: Run, count: int, *, decide: bool) -> Samples:
        """`count` samples to calibrate on, drawn by the run's seed; up to 64 others where they `decide` something.

        Raises `Failure(DATASET_BAD)` when there are none.
        """
        split = _split(run)
        drawn = split.drawn(len(split), run.spec.seed).rows
        kept = min(_HELD_OUT, len(drawn) // 4 or 1) if decide else 0
        if len(drawn) <= kept:
            raise Failure(Code.DATASET_BAD, '`"ranges": "auto"` needs two samples at least: one of them decides')
        count = min(count, len(drawn) - kept)
        held_out = drawn[count : count + _HELD_OUT] if decide else drawn[:0]
        return cls(replace(split, rows=drawn[:count]), replace(split, rows=held_out))

    def calibration_batches(self, run: Run, start: float = 0.0, width: float = 1.0) -> Iterator[Inputs]:
        """On the run's device; its progress goes from `start` on by `width` meanwhile."""
        done = 0
        for batch in self.calibration.batches(_BATCH):
            yield batch.to(run.device).inputs
            done += len(batch)
            run.progress(start + width * done / len(self.calibration))


@dataclass(frozen=True)
class Calibration:
    """The `ranges` of the values that are rounded. `tried`: of each method, the SQNR in dB of the outputs of held-out
    samples, where that decided."""

    ranges: Mapping[str, Range]
    method: Method
    tried: Mapping[str, float] | None


def calibrate(
    graph: fx.GraphModule, placement: Placement, step: Int8Choices, samples: Samples, run: Run
) -> Calibration:
    """Observe the values of the folded `graph`, and choose their ranges as `step` says.

    Raises `Failure(DATASET_BAD)` when a value is not finite on a sample.
    """
    values = set(placement.sources.values())
    if step.floor is not None:  # With fewer 8-bit layers what one reads may not be part of a chain any more.
        values.update(value for layer in placement.layers for value in values_read(graph, layer))
    passes = 1 if _is_minmax(step) else 2
    observed = observe_ranges(graph, values, samples.calibration_batches(run, 0.0, 1 / passes))
    histograms: dict[str, Histogram] = {}
    if passes == 2:
        histograms = observe_histograms(graph, observed, samples.calibration_batches(run, 0.5, 0.5))
    readers = _readers(graph, placement)

    def ranges_by(method: Method) -> dict[str, Range]:
        return {
            name: _range(step, readers.get(name, ()), method, observed[name], histograms.get(name)) for name in observed
        }

    if step.ranges != "auto":
        return Calibration(ranges_by(step.ranges), step.ranges, None)
    noise = noise_of(graph, placement, step, samples.held_out, run.device)
    candidates = {method: ranges_by(method) for method in _METHODS}
    tried = {method: noise(ranges) for method, ranges in candidates.items()}
    best = max(_METHODS, key=lambda method: tried[method])
    return Calibration(candidates[best], best, {method: round(value, 2) for method, value in tried.items()})


def _is_minmax(step: Int8Choices) -> bool:
    return {step.ranges, *(choice.ranges for choice in step.layers)} <= {"minmax", None}


def _readers(graph: fx.GraphModule, placement: Placement) -> dict[str, list[str]]:
    """The layers that read a value, in order, by the value whose range it has."""
    found: dict[str, list[str]] = {}
    for layer in placement.layers:
        for value in values_read(graph, layer):
            found.setdefault(placement.sources[value], []).append(layer)
    return found


def _range(
    step: Int8Choices, readers: list[str] | tuple[()], method: Method, observed: Range, histogram: Histogram | None
) -> Range:
    """The first layer that reads the value and has something of its own to say of it does."""
    own = [choice for choice in (step.choice_for(layer) for layer in readers) if choice is not None]
    symmetric = next((choice.symmetric for choice in own if choice.symmetric is not None), step.symmetric)
    return narrow(
        next((choice.ranges for choice in own if choice.ranges is not None), method),
        observed,
        histogram,
        percentile=step.percentile or PERCENTILE,
        symmetric=symmetric,
    )


def noise_of(
    graph: fx.GraphModule, placement: Placement, step: Int8Choices, samples: Split, device: torch.device
) -> Callable[[Mapping[str, Range]], float]:
    """The SQNR in dB of the network's outputs on `samples`, by the ranges; with several outputs, of the worst."""
    batches = [batch.to(device).inputs for batch in samples.batches(_BATCH)]

    def outputs(network: fx.GraphModule) -> tuple[Tensor, ...]:
        with torch.no_grad():
            parts = [outputs_of(network(*inputs)) for inputs in batches]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    expected = outputs(graph)

    def noise(ranges: Mapping[str, Range]) -> float:
        rounded = copy.deepcopy(graph)
        activations = activations_of(placement, ranges)
        scales = scales_of(rounded, placement, activations, step)
        put_on_grid(rounded, scales, largest_weight(step))
        return sqnr_db(expected, outputs(integer_network(rounded, Quantization(activations, scales, {}, {}))))

    return noise


def _split(run: Run) -> Split:
    if run.data is not None:
        for split in (run.data.val, run.data.train):
            if len(split):
                return split
    raise Failure(Code.DATASET_BAD, "quantization needs calibration samples; send a data set, labels are not needed")
