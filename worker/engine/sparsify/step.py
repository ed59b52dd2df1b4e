"""The sparsify step: score, choose, set to zero, and leave masks that every later step keeps to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from models.criteria import WeightCriterion
from models.errors import Code, Failure
from models.spec import Blocks, LayerSparsity, NOfM, SparsifyStep
from models.statuses import Phase
from worker.engine.masks import mask_weights
from worker.engine.run import Run
from worker.engine.score.criteria import CRITERIA
from worker.engine.score.gradients import Gradients, gather
from worker.engine.score.weights import weight_scores
from worker.engine.sparsify.matrices import Weight, sparse_weights
from worker.engine.sparsify.patterns import below, block_scores, misfit, n_of_m, smallest, spread
from worker.engine.subject import Record, Subject

NEAR = 0.02
"""How far the fraction reached may be from the one asked for before it is called a miss."""


@dataclass(frozen=True)
class _Target:
    """A weight that gets the pattern, and what its layer's choice says; `stays` is what an earlier step left of it."""

    weight: Weight
    choice: LayerSparsity | None
    stays: Tensor

    def criterion(self, step: SparsifyStep) -> WeightCriterion:
        return (self.choice.criterion if self.choice is not None else None) or step.criterion

    @property
    def has_own_amount(self) -> bool:
        return self.choice is not None and (self.choice.amount, self.choice.threshold) != (None, None)


def run(subject: Subject, step: SparsifyStep, run: Run) -> dict[str, Any]:
    """Set weights of `subject.graph` to zero, add their masks to `subject.masks` and append the record that `replay`
    repeats.

    Raises `Failure`: `nothing_to_prune` when no weight can have the pattern, or none goes that was not zero already.
    """
    run.phase(Phase.PRUNING)
    targets, dense = _targets(subject, step)
    if not targets:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(dense.items())[:5])
        raise Failure(Code.NOTHING_TO_PRUNE, f"No weight can be set to zero ({reasons or 'no layer has any'}).")
    gradients = _gradients(subject, step, targets, run)
    masks = _choose(targets, step, _scores(subject, step, targets, gradients, run))
    before, after = sum(_zeros(t.stays) for t in targets), sum(_zeros(mask) for mask in masks.values())
    total = sum(mask.numel() for mask in masks.values())
    if after <= before:
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"No further weight would become zero: {before / total:.1%} are zero already. Ask for more.",
        )
    subject.masks |= masks
    mask_weights(subject.graph, subject.masks)
    subject.records.append(Record("sparsify", {"zeros": after}, masks))
    if step.amount is not None and (missed := _missed(targets, masks, step.amount)) is not None:
        run.warn("amount_not_reached", missed)
    details = _details(step, targets, masks, dense)
    if gradients is not None:
        details |= {"gradients_of": gradients.loss, "gradient_samples": gradients.samples}
    return details


def replay(subject: Subject, record: Record) -> None:
    """Take the masks over; nothing is scored again."""
    subject.masks |= {name: mask.bool() for name, mask in record.tensors.items()}
    mask_weights(subject.graph, subject.masks)


def _targets(subject: Subject, step: SparsifyStep) -> tuple[list[_Target], dict[str, str]]:
    """The weights that get the pattern, and of those that do not, why."""
    targets: list[_Target] = []
    dense: dict[str, str] = {}
    for weight in sparse_weights(subject.graph):
        choice = next((choice for choice in step.layers if fnmatchcase(weight.layer, choice.match)), None)
        _, outputs, inputs = weight.matrices(weight.tensor).shape
        own = choice is not None and (choice.amount, choice.threshold) != (None, None)
        if choice is not None and choice.skip:
            dense[weight.parameter] = "skipped by `layers`"
        elif not isinstance(step.pattern, NOfM) and not own and (step.amount, step.threshold) == (None, None):
            dense[weight.parameter] = "no amount is asked of it"
        elif (reason := misfit(step.pattern, outputs, inputs, weight.neighbours)) is not None:
            dense[weight.parameter] = reason
        else:
            earlier = subject.masks.get(weight.parameter)
            stays = torch.ones(weight.tensor.shape, dtype=torch.bool) if earlier is None else earlier.cpu()
            targets.append(_Target(weight, choice, stays))
    return targets, dense


def _gradients(subject: Subject, step: SparsifyStep, targets: Sequence[_Target], run: Run) -> Gradients | None:
    """What the criteria ask of training samples, where they ask anything."""
    asked = {CRITERIA[target.criterion(step)].statistic for target in targets}
    statistics = {statistic for statistic in asked if statistic is not None}
    if not statistics:
        return None
    return gather(subject, run, statistics, step.samples, _seed(run), on_progress=run.progress)


def _scores(
    subject: Subject, step: SparsifyStep, targets: Sequence[_Target], gradients: Gradients | None, run: Run
) -> list[Tensor]:
    return [
        weight_scores(subject.graph, target.weight.parameter, target.criterion(step), _seed(run), gradients).cpu()
        for target in targets
    ]


def _seed(run: Run) -> int:
    return run.spec.seed + (run.step_index or 0)


def _choose(targets: Sequence[_Target], step: SparsifyStep, scores: Sequence[Tensor]) -> dict[str, Tensor]:
    """The mask of each target: what stays of what stayed before."""
    chosen: dict[str, Tensor] = {}
    together: list[tuple[_Target, Tensor]] = []
    for target, score in zip(targets, scores, strict=True):
        name, choice = target.weight.parameter, target.choice
        if isinstance(step.pattern, NOfM):
            matrices = target.weight.matrices(score.masked_fill(~target.stays, -torch.inf))
            chosen[name] = target.weight.restored(n_of_m(matrices, *step.pattern.n_of_m)) & target.stays
            continue
        units = _units(target, score, step)
        amount, threshold = step.amount, step.threshold
        if choice is not None and target.has_own_amount:
            amount, threshold = choice.amount, choice.threshold
        if threshold is not None:
            chosen[name] = _mask(target, below(units, threshold), step)
        elif amount is not None and (target.has_own_amount or step.scope == "layer"):
            chosen[name] = _mask(target, smallest([units], amount)[0], step)
        else:
            together.append((target, units))
    if together:
        assert step.amount is not None
        for (target, _), stays in zip(together, smallest([units for _, units in together], step.amount), strict=True):
            chosen[target.weight.parameter] = _mask(target, stays, step)
    return {target.weight.parameter: chosen[target.weight.parameter] for target in targets}


def _block(step: SparsifyStep) -> tuple[int, int]:
    return step.pattern.block if isinstance(step.pattern, Blocks) else (1, 1)


def _units(target: _Target, score: Tensor, step: SparsifyStep) -> Tensor:
    """One score a block; what is zero already counts nothing, and where all is, goes first."""
    stays = target.weight.matrices(target.stays)
    emptied = block_scores(stays.double(), *_block(step)) == 0
    units = block_scores(target.weight.matrices(score) * stays, *_block(step))
    if target.criterion(step) == "l2":
        units = units.sqrt()  # The entries are squares.
    return units.masked_fill(emptied, -torch.inf)


def _mask(target: _Target, stays: Tensor, step: SparsifyStep) -> Tensor:
    return target.weight.restored(spread(stays, *_block(step))) & target.stays


def _zeros(mask: Tensor) -> int:
    return mask.numel() - int(mask.count_nonzero())


def _missed(targets: Sequence[_Target], masks: Mapping[str, Tensor], amount: float) -> str | None:
    """In words, where the weights that share the step's amount are not near it."""
    shared = [masks[target.weight.parameter] for target in targets if not target.has_own_amount]
    if not shared:
        return None
    reached = sum(_zeros(mask) for mask in shared) / sum(mask.numel() for mask in shared)
    if abs(reached - amount) <= NEAR:
        return None
    return (
        f"Asked for {amount:.1%} of the weights to be zero, reached {reached:.1%}: every layer keeps its best, blocks "
        "go whole, and what is zero stays so."
    )


def _details(
    step: SparsifyStep, targets: Sequence[_Target], masks: Mapping[str, Tensor], dense: Mapping[str, str]
) -> dict[str, Any]:
    weights, zeros = (sum(count(mask) for mask in masks.values()) for count in (Tensor.numel, _zeros))
    return {
        "pattern": step.model_dump(mode="json")["pattern"],
        "criterion": step.criterion,
        "asked": step.amount,
        "threshold": step.threshold,
        "reached": round(zeros / weights, 6),
        "weights": weights,
        "zeros": zeros,
        "layers": [
            {
                "name": target.weight.layer,
                "parameter": target.weight.parameter,
                "weights": masks[target.weight.parameter].numel(),
                "zeros": _zeros(masks[target.weight.parameter]),
            }
            for target in targets
        ],
        "left_dense": dict(dense),
    }
