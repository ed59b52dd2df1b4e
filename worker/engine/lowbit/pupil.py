"""The network of a low-bit step while it is trained: layers whose weights are made by what learns in their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, fx

from worker.engine.graph.blocks import use_blocks
from worker.engine.graph.coded import SOURCE, make_weight
from worker.engine.lowbit.learn import Source, source_of
from worker.engine.subject import Record, Subject

TRAINING = "quantize few bits training"
"""The record of a subject whose weights are being made: training is under way."""


@dataclasses.dataclass(frozen=True)
class Learns:
    """`source` makes the weight of `layers`, which share it."""

    source: Source
    layers: tuple[str, ...]


def pupil_of(
    subject: Subject, network: fx.GraphModule, learners: Mapping[str, Learns], blocks: Mapping[str, int]
) -> Subject:
    """`subject` as it is trained: with `network`, changed in place, whose parameters `learners` make, and whose layers
    in `blocks` round their inputs. Masks of weights become masks of what makes them."""
    use_blocks(network, blocks)
    masks = dict(subject.masks)
    settings: dict[str, object] = {}
    tensors: dict[str, Tensor] = {}
    for parameter, learner in learners.items():
        said, kept = learner.source.as_record()
        settings[parameter] = {"layers": list(learner.layers), **said}
        tensors |= {f"{parameter}/{name}": tensor for name, tensor in kept.items()}
        for layer in learner.layers:
            make_weight(network.get_submodule(layer), learner.source)
            if (mask := masks.pop(f"{layer}.weight", None)) is not None:
                own = learner.source.masks(mask)
                masks |= {f"{layer}.{SOURCE}.{name}": value for name, value in own.items()}
    record = Record(TRAINING, {"sources": settings, "blocks": dict(blocks)}, tensors)
    return dataclasses.replace(subject, graph=network, records=[*subject.records, record], masks=masks)


def replay_training(subject: Subject, record: Record) -> None:
    """The network that was trained, as it began; a checkpoint carries what it had learnt."""
    learners = {}
    for parameter, said in record.data["sources"].items():
        settings = {name: value for name, value in said.items() if name != "layers"}
        source = source_of(settings, record.tensors_of(parameter), subject.graph.get_parameter(parameter))
        learners[parameter] = Learns(source, tuple(said["layers"]))
    pupil = pupil_of(subject, subject.graph, learners, record.data["blocks"])
    subject.masks = pupil.masks
