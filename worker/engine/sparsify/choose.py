"""Which weights go: by the pattern, from their scores, for every layer as its choice says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx, nn

from models.criteria import WeightCriterion
from models.schedules import gone_after
from models.spec import Blocks, LayerSparsity, NOfM, SparsifyStep
from worker.engine.sparsify.matrices import Weight, sparse_weights
from worker.engine.sparsify.patterns import below, block_scores, misfit, n_of_m, smallest, spread
from worker.engine.subject import Subject


@dataclass(frozen=True)
class Target:
    """A weight that gets the pattern, and what its layer's choice says; `stays` is what is left of it so far."""

    weight: Weight
    choice: LayerSparsity | None
    stays: Tensor

    def criterion(self, step: SparsifyStep) -> WeightCriterion:
        return (self.choice.criterion if self.choice is not None else None) or step.criterion

    @property
    def has_own_amount(self) -> bool:
        return _has_own_amount(self.choice)


def targets_of(subject: Subject, step: SparsifyStep) -> tuple[list[Target], dict[str, str]]:
    """The weights that get the pattern, and of all other parameters but vectors, why they do not."""
    targets: list[Target] = []
    weights = sparse_weights(subject.graph)
    dense = _not_of_layers(subject.graph, weights)
    for weight in weights:
        choice = next((choice for choice in step.layers if fnmatchcase(weight.layer, choice.match)), None)
        _, outputs, inputs = weight.matrices(weight.tensor).shape
        without_amount = not isinstance(step.pattern, NOfM) and (step.amount, step.threshold) == (None, None)
        if choice is not None and choice.skip:
            dense[weight.parameter] = "skipped by `layers`"
        elif without_amount and not _has_own_amount(choice):
            dense[weight.parameter] = "no amount is asked of it"
        elif (reason := misfit(step.pattern, outputs, inputs, weight.neighbours)) is not None:
            dense[weight.parameter] = reason
        else:
            earlier = subject.masks.get(weight.parameter)
            stays = torch.ones(weight.tensor.shape, dtype=torch.bool) if earlier is None else earlier.cpu()
            targets.append(Target(weight, choice, stays))
    return targets, dense


def _not_of_layers(graph: fx.GraphModule, weights: Sequence[Weight]) -> dict[str, str]:
    of_layers = {id(weight.tensor) for weight in weights}
    reasons = {}
    for name, parameter in graph.named_parameters():
        if parameter.dim() > 1 and id(parameter) not in of_layers:
            embedding = isinstance(graph.get_submodule(name.rpartition(".")[0]), nn.Embedding)
            reasons[name] = "is looked up, not multiplied" if embedding else "is not the weight of a layer"
    return reasons


def choose(
    targets: Sequence[Target], step: SparsifyStep, scores: Mapping[str, Tensor], number: int
) -> dict[str, Tensor]:
    """The mask of each target in round `number`, by the name of its parameter: what stays of what stayed before.
    `scores` are by the same names and in the shape of the weight."""
    chosen: dict[str, Tensor] = {}
    together: list[tuple[Target, Tensor]] = []
    for target in targets:
        name, choice = target.weight.parameter, target.choice
        if isinstance(step.pattern, NOfM):
            matrices = target.weight.matrices(scores[name].masked_fill(~target.stays, -torch.inf))
            chosen[name] = target.weight.restored(n_of_m(matrices, *step.pattern.n_of_m)) & target.stays
            continue
        units = _units(target, scores[name], step)
        amount, threshold = step.amount, step.threshold
        if choice is not None and target.has_own_amount:
            amount, threshold = choice.amount, choice.threshold
        if threshold is not None:
            chosen[name] = _mask(target, below(units, threshold), step)
        elif amount is not None and (target.has_own_amount or step.scope == "layer"):
            chosen[name] = _mask(target, smallest([units], gone_after(step.schedule, number, amount))[0], step)
        else:
            together.append((target, units))
    if together:
        assert step.amount is not None
        masks = smallest(_comparable(together, step), gone_after(step.schedule, number, step.amount))
        for (target, _), stays in zip(together, masks, strict=True):
            chosen[target.weight.parameter] = _mask(target, stays, step)
    return {target.weight.parameter: chosen[target.weight.parameter] for target in targets}


def _comparable(together: Sequence[tuple[Target, Tensor]], step: SparsifyStep) -> list[Tensor]:
    """The scores of one ranking: of several criteria they have mean one in each layer, as those of channels have."""
    scores = [units for _, units in together]
    if len({target.criterion(step) for target, _ in together}) == 1:
        return scores
    means = [units[units.isfinite()].mean() for units in scores]
    return [units / mean if mean > 0 else units for units, mean in zip(scores, means, strict=True)]


def _has_own_amount(choice: LayerSparsity | None) -> bool:
    return choice is not None and (choice.amount, choice.threshold) != (None, None)


def _block(step: SparsifyStep) -> tuple[int, int]:
    return step.pattern.block if isinstance(step.pattern, Blocks) else (1, 1)


def _units(target: Target, score: Tensor, step: SparsifyStep) -> Tensor:
    """One score a block; what is zero already counts nothing, and where all is, goes first."""
    stays = target.weight.matrices(target.stays)
    emptied = block_scores(stays.double(), *_block(step)) == 0
    units = block_scores(target.weight.matrices(score) * stays, *_block(step))
    if target.criterion(step) == "l2":
        units = units.sqrt()  # The entries are squares.
    return units.masked_fill(emptied, -torch.inf)


def _mask(target: Target, stays: Tensor, step: SparsifyStep) -> Tensor:
    return target.weight.restored(spread(stays, *_block(step))) & target.stays
