"""Which layers stay in floating point, so that 8 bits cost no more than is allowed.

Mixed precision by sensitivity: the noise that each layer alone adds to the outputs is measured once, and the worst
layers stay float, as few as keep the metric above the floor (Wu et al., 2020, "Integer Quantization for Deep Learning
Inference", section 5.2, partial quantization).
"""

from __future__ import annotations

import copy
import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from models.errors import Code, Failure
from models.spec import Int8Choices
from models.spec_int8 import Floor
from worker.engine.assess import assess, deciding
from worker.engine.graph.integer import Quantization
from worker.engine.measure.metrics import drop
from worker.engine.quantize.calibrate import noise_of
from worker.engine.quantize.grids import activations_of, largest_weight, put_on_grid, scales_of
from worker.engine.quantize.observe import Range
from worker.engine.quantize.placement import Placement, place
from worker.engine.run import Run
from worker.engine.subject import Subject

_SAMPLES = 64
"""Validation samples on which the noise of single layers is measured."""


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
    assert run.data is not None
    measured = _on_less(run, step.floor)
    metric, allowed = run.data.metric, step.floor.max_metric_drop
    whole = place(graph, skipped)

    def score(placement: Placement | None) -> float:
        tried = replace(subject, graph=graph, quantization=None)
        if placement is not None:
            tried = replace(subject, graph=copy.deepcopy(graph))
            activations = activations_of(placement, ranges)
            scales = scales_of(tried.graph, placement, activations, step)
            put_on_grid(tried.graph, scales, largest_weight(step))
            tried.quantization = Quantization(activations, scales, {}, {})
        found = deciding(assess(tried, measured), metric)
        if found is None:
            raise Failure(Code.INTERNAL, f"{metric} was not measured")
        return found.value

    before, after = score(None), score(whole)
    details: dict[str, Any] = {
        "metric": metric,
        "float": before,
        "all_int8": after,
        "int8": after,
        "sqnr_db_alone": None,
    }
    if drop(metric, before, after) <= allowed:
        return whole, details
    alone = _noise_alone(graph, whole, step, ranges, measured)
    order = sorted(alone, key=lambda name: alone[name])

    def without(count: int) -> Placement:
        return place(graph, [*skipped, *(glob.escape(name) for name in order[:count])])

    fails, holds = 0, len(order) - 1
    reached = score(without(holds))
    if drop(metric, before, reached) > allowed:
        run.warn(
            "floor_not_reached",
            f"{metric} falls by {drop(metric, before, reached):.4f} even with one 8-bit layer, more than the "
            f"{allowed:g} of `floor`.",
        )
        fails = holds
    while holds - fails > 1:
        middle = (fails + holds) // 2
        value = score(without(middle))
        if drop(metric, before, value) <= allowed:
            holds, reached = middle, value
        else:
            fails = middle
    reasons = {name: f"kept by `floor`: alone it leaves {alone[name]:.1f} dB" for name in order[:holds]}
    chosen = without(holds)
    details |= {"int8": reached, "sqnr_db_alone": {name: round(alone[name], 2) for name in order}}
    return replace(chosen, kept_float={**chosen.kept_float, **reasons}), details


def _on_less(run: Run, floor: Floor) -> Run:
    """`run`, with no more validation samples than asked for."""
    assert run.data is not None
    if floor.samples is None:
        return run
    return replace(run, data=replace(run.data, val=run.data.val.drawn(floor.samples, run.spec.seed)))


def _noise_alone(
    graph: fx.GraphModule, whole: Placement, step: Int8Choices, ranges: Mapping[str, Range], run: Run
) -> dict[str, float]:
    """SQNR in dB of the outputs with one layer in 8 bits and the others in floating point, by that layer."""
    assert run.data is not None
    samples = run.data.val.drawn(_SAMPLES, run.spec.seed)
    found = {}
    for name in whole.layers:
        others = [glob.escape(other) for other in whole.layers if other != name]
        floats = [glob.escape(other) for other in whole.kept_float]
        found[name] = noise_of(graph, place(graph, [*others, *floats]), step, samples, run.device)(ranges)
    return found
