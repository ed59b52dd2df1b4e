"""Which layers take 8 bits in place of fewer, so that those of the others cost no more than is allowed."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from models.spec_types import Floor
from worker.engine.floor import Gauge, fewest
from worker.engine.graph.blocks import use_blocks
from worker.engine.measure.compare import outputs_of, sqnr_db
from worker.engine.run import Run
from worker.engine.subject import Subject

_BATCH = 32


@dataclass(frozen=True)
class Versions:
    """A weight in the few bits that were asked for, and in 8; both as a file would hold them."""

    few: Tensor
    eight: Tensor


def take_more(
    subject: Subject,
    weights: Mapping[str, Tensor],
    other: Mapping[str, Versions],
    blocks: Mapping[str, int],
    floor: Floor,
    run: Run,
) -> tuple[list[str], dict[str, Any]]:
    """As few of the parameters in `other` as the floor wants in 8 bits, and what was found, for the report. `weights`
    are those that stay in the bits asked for whatever comes of it; layers in `blocks` round their inputs unless their
    weight takes 8 bits. `subject` stays as it is."""
    gauge = Gauge(floor, run)
    tried = replace(subject, graph=copy.deepcopy(subject.graph))
    before = gauge.score(tried)
    owned = {layer: tried.graph.get_submodule(layer).weight for layer in blocks}

    def score(raised: Collection[str]) -> float:
        own = {id(tried.graph.get_parameter(name)) for name in raised}
        use_blocks(tried.graph, blocks, [layer for layer, weight in owned.items() if id(weight) in own])
        chosen = {name: each.few for name, each in other.items()} | {name: other[name].eight for name in raised}
        _load(tried.graph, {**weights, **chosen})
        return gauge.score(tried)

    asked = score(())
    details: dict[str, Any] = {
        "metric": gauge.metric,
        "float": before,
        "as_asked": asked,
        "reached": asked,
        "sqnr_db_alone": None,
    }
    if gauge.holds(before, asked):
        return [], details
    alone = _noise_alone(subject.graph, {name: each.few for name, each in other.items()}, gauge, run.device)
    order = sorted(alone, key=lambda name: alone[name])
    count, reached = 0, asked
    if order:
        count, reached = fewest(
            len(order), lambda count: score(order[:count]), lambda value: gauge.holds(before, value)
        )
    gauge.warn_unless_held(before, reached, "8 bits in every layer that may have them")
    details |= {"reached": reached, "sqnr_db_alone": {name: round(alone[name], 2) for name in order}}
    return order[:count], details


def _noise_alone(
    graph: fx.GraphModule, few: Mapping[str, Tensor], gauge: Gauge, device: torch.device
) -> dict[str, float]:
    """SQNR in dB of the outputs with one weight in few bits and the others as they are, by that weight."""
    network = copy.deepcopy(graph).to(device)
    batches = [batch.to(device).inputs for batch in gauge.for_noise().batches(_BATCH)]

    def outputs() -> tuple[Tensor, ...]:
        with torch.no_grad():
            parts = [outputs_of(network(*inputs)) for inputs in batches]
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    expected = outputs()
    found = {}
    for name, weight in few.items():
        gauge.alive()
        _load(network, {name: weight})
        found[name] = sqnr_db(expected, outputs())
        _load(network, {name: graph.get_parameter(name)})
    return found


def _load(network: fx.GraphModule, weights: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in weights.items():
            network.get_parameter(name).copy_(weight)
