"""What a prune step asks of each group of channels. The API checks specs by it, the engine prunes by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from models.criteria import CRITERIA, GRADIENT_SAMPLES, GradientLoss, Normalize, UnitCriterion, needs_gradients
from models.inspection import GroupInfo
from models.spec_prune import Amount, LayerAmount, PruneChoice, PruneStep
from models.spec_train import Loss


@dataclass(frozen=True)
class Policy:
    """Of one group. `entry` is the place in `layers` of the choice it follows; `amount` is the group's own, without
    which it has a part in the step's."""

    entry: int | None
    skip: bool
    criterion: UnitCriterion
    normalize: Normalize
    amount: LayerAmount | None
    minimum: int
    maximum_fraction: float
    round_to: int


def policy_for(step: PruneStep, layers: Sequence[str]) -> Policy:
    """For the group of channels that these layers share."""
    entries = {entry for layer in layers if (entry := first_match(step.layers, layer)) is not None}
    skipped = next((entry for entry in sorted(entries) if step.layers[entry].skip), None)
    entry = skipped if skipped is not None else min(entries, default=None)
    choice = step.layers[entry] if entry is not None else None
    amount = choice.amount if choice is not None else None
    criterion = (choice.criterion if choice is not None else None) or step.criterion
    return Policy(
        entry=entry,
        skip=skipped is not None or (amount is None and step.amount is None),
        criterion=criterion,
        normalize=normalization(step, choice),
        amount=amount,
        minimum=(choice.minimum if choice is not None else None) or step.minimum,
        maximum_fraction=(choice.maximum_fraction if choice is not None else None) or step.maximum_fraction,
        round_to=(choice.round_to if choice is not None else None) or step.round_to,
    )


def layers_of(step: PruneStep, group: GroupInfo) -> list[str]:
    """The layers by whose names a group goes: those that make its units, or read them where columns go; none where the
    structure does not mean this group."""
    if step.structure == "columns":
        return group.consumers
    meant = {"channels": True, "heads": group.heads, "groups": group.whole}[step.structure]
    return group.layers if meant else []


def first_match(choices: Sequence[PruneChoice], layer: str) -> int | None:
    """The place of the choice that counts for a layer."""
    return next((place for place, choice in enumerate(choices) if fnmatchcase(layer, choice.match)), None)


def normalization(step: PruneStep, choice: PruneChoice | None) -> Normalize:
    """What is asked for, else what is usual: thresholds are held against scores as they are, and whole groups by
    those, since normalised they would all be alike."""
    if step.structure == "groups":
        return "none"
    amount: Amount | LayerAmount | None = step.amount
    criterion = step.criterion
    if choice is not None:
        if choice.normalize is not None:
            return choice.normalize
        criterion, amount = choice.criterion or criterion, choice.amount or amount
    if step.normalize is not None and (choice is None or (criterion == step.criterion and amount is step.amount)):
        return step.normalize
    if amount is not None and amount.threshold is not None:
        return "none"
    usual = CRITERIA[criterion].normalize
    shares_ranking = step.scope == "global" and (choice is None or choice.amount is None)
    return "mean" if usual == "none" and shares_ranking and mixes_criteria(step) else usual


def mixes_criteria(step: PruneStep) -> bool:
    """Whether one ranking holds scores of several criteria, which are not comparable as they are."""
    sharing = (choice for choice in step.layers if choice.skip is None and choice.amount is None)
    return step.amount is not None and any(choice.criterion not in (None, step.criterion) for choice in sharing)


def resolve_prune(step: PruneStep, loss: Loss, differentiated: GradientLoss | None) -> PruneStep:
    """`step` with every default filled in; `loss` and `differentiated` are what the data allows."""
    layers = [
        choice if choice.skip else choice.model_copy(update={"normalize": normalization(step, choice)})
        for choice in step.layers
    ]
    schedule = step.schedule
    if schedule is not None and schedule.loss is None:
        schedule = schedule.model_copy(update={"loss": loss})
    criteria = [step.criterion, *(choice.criterion for choice in layers)]
    if not any(criterion is not None and needs_gradients(criterion) for criterion in criteria):
        differentiated = None
    filled = {
        "normalize": normalization(step, None),
        "loss": step.loss or differentiated,
        "samples": step.samples or (GRADIENT_SAMPLES if differentiated else None),
        "layers": layers,
        "schedule": schedule,
    }
    return step.model_copy(update=filled)


def removable_counts(units: int, widths: Sequence[int], policy: Policy, units_at_start: int | None = None) -> list[int]:
    """How many of a group's units may go, none first: what stays then makes the channels of its layers, `widths` a
    unit, multiples of `round_to`, and is no less than the policy's bounds (on what there was at the start)."""
    step = math.lcm(*(policy.round_to // math.gcd(policy.round_to, width) for width in widths or (1,)))
    least = math.ceil((units_at_start or units) * (1 - policy.maximum_fraction) - 1e-9)
    least = max(1, policy.minimum, least)
    return [0, *(units - left for left in range((units - 1) // step * step, least - 1, -step))]
