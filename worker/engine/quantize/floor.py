"""Which layers stay in floating point, so that 8 bits cost no more than is allowed."""

from __future__ import annotations

import copy
import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from models.spec import Int8Choices
from worker.engine.floor import Gauge, fewest
from worker.engine.graph.integer import Quantization
from worker.engine.quantize.calibrate import noise_of
from worker.engine.quantize.grids import activations_of, largest_weight, put_on_grid, scales_of
from worker.engine.quantize.observe import Range
from worker.engine.quantize.placement import Placement, place
from worker.engine.run import Run
from worker.engine.subject import Subject


def keep_floor(
    subject: Subject,
    graph: fx.GraphModule,
    skipped: Sequence[str],
    step: Int8Choices,
    ranges: Mapping[str, Range],
    run: Run,
) -> tuple[Placement, dict[str, Any]]:
    """The placement with as few layers of the folded `graph` in floating point as the floor wants, and what was found,
    for the report. `skipped` are globs of layers that are float anyway; `ranges` are of every value a layer reads."""
    assert step.floor is not None
    gauge = Gauge(step.floor, run)
    whole = place(graph, skipped)

    def score(placement: Placement) -> float:
        tried = replace(subject, graph=copy.deepcopy(graph))
        activations = activations_of(placement, ranges)
        scales = scales_of(tried.graph, placement, activations, step)
        put_on_grid(tried.graph, scales, largest_weight(step))
        tried.quantization = Quantization(activations, scales, {}, {})
        return gauge.score(tried)

    before, after = gauge.score(replace(subject, graph=graph, quantization=None)), score(whole)
    details: dict[str, Any] = {
        "metric": gauge.metric,
        "float": before,
        "all_int8": after,
        "int8": after,
        "sqnr_db_alone": None,
    }
    if gauge.holds(before, after):
        return whole, details
    alone = _noise_alone(graph, whole, step, ranges, gauge, run.device)
    order = sorted(alone, key=lambda name: alone[name])

    def without(count: int) -> Placement:
        return place(graph, [*skipped, *(glob.escape(name) for name in order[:count])])

    count, reached = fewest(
        len(order) - 1, lambda count: score(without(count)), lambda value: gauge.holds(before, value)
    )
    gauge.warn_unless_held(before, reached, "one 8-bit layer")
    reasons = {name: f"kept by `floor`: alone it leaves {alone[name]:.1f} dB" for name in order[:count]}
    chosen = without(count)
    details |= {"int8": reached, "sqnr_db_alone": {name: round(alone[name], 2) for name in order}}
    return replace(chosen, kept_float={**chosen.kept_float, **reasons}), details


def _noise_alone(
    graph: fx.GraphModule,
    whole: Placement,
    step: Int8Choices,
    ranges: Mapping[str, Range],
    gauge: Gauge,
    device: torch.device,
) -> dict[str, float]:
    """SQNR in dB of the outputs with one layer in 8 bits and the others in floating point, by that layer."""
    found, samples = {}, gauge.for_noise()
    for name in whole.layers:
        gauge.alive()
        others = [glob.escape(other) for other in whole.layers if other != name]
        floats = [glob.escape(other) for other in whole.kept_float]
        found[name] = noise_of(graph, place(graph, [*others, *floats]), step, samples, device)(ranges)
    return found
