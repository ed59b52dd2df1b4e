"""The prune step: score, choose, cut, prove."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, fx

from models.criteria import CRITERIA
from models.errors import Code, Failure
from models.spec import PruneStep
from models.statuses import Phase
from worker.engine.graph.channels import Channels, Group, analyse
from worker.engine.graph.cut import cut
from worker.engine.graph.maskcheck import TOLERANCE, prove
from worker.engine.masks import cut_masks
from worker.engine.prune.select import Candidate, Selection, select
from worker.engine.run import Run
from worker.engine.score.gradients import Gradients
from worker.engine.score.groups import score_groups
from worker.engine.score.units import Scoring, unscorable
from worker.engine.subject import Record, Subject


def run(subject: Subject, step: PruneStep, run: Run) -> dict[str, Any]:
    """Remove channels from `subject.graph` and append the record that `replay` repeats.

    Raises `Failure`: `nothing_to_prune`, `no_layer_matches`, or `verification_failed` when the cut network is not the
    masked one.
    """
    run.phase(Phase.PRUNING)
    subject.graph.to(run.device)
    inputs = _inputs(subject)
    channels = analyse(subject.graph, inputs)
    groups, left_alone = _scorable(channels, _not_skipped(channels, step), step)
    scoring = _scoring(step)
    seed = run.spec.seed + (run.step_index or 0)
    scores, gradients = score_groups(subject, run, channels, [(group, scoring) for group in groups], step.samples, seed)
    candidates = [Candidate.of(group, own, step.round_to) for group, own in zip(groups, scores, strict=True)]
    if not any(len(candidate.choices) > 1 for candidate in candidates):
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"No group of channels can lose any: what stays must be a multiple of {step.round_to} (`round_to`), and "
            f"the largest group that may shrink has {max(len(group.units) for group in groups)} units. "
            "Lower `round_to`.",
        )
    selection = select(channels, candidates, step.amount, step.scope)
    if not selection.removed:
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"Removing {step.amount.fraction:.1%} of the {step.amount.quantity} is less than the smallest step of "
            f"{step.round_to} channels (`round_to`). Lower `round_to` or ask for more.",
        )
    run.progress(0.5)
    removed, difference = _cut_and_prove(subject, channels, selection, inputs)
    subject.records.append(Record("prune", {"units": len(removed)}, {"removed": removed}))
    if selection.why is not None:
        run.warn(
            "amount_not_reached",
            f"Asked to remove {step.amount.fraction:.1%} of the {step.amount.quantity}, removed "
            f"{selection.reached:.1%}: {selection.why}.",
        )
    details = _details(step, candidates, selection, difference)
    return details | _how_scored(scoring, gradients) | {"left_alone": left_alone}


def replay(subject: Subject, record: Record) -> None:
    """Repeat a cut on an equal graph; nothing is scored or checked again."""
    channels, removed = analyse(subject.graph, _inputs(subject)), record.tensors["removed"].tolist()
    subject.masks = cut_masks(subject.masks, channels, removed)
    cut(channels, removed)


def _inputs(subject: Subject) -> tuple[Tensor, ...]:
    device = next((parameter.device for parameter in subject.graph.parameters()), None)
    return tuple(tensor.to(device) for tensor in subject.example_inputs())


def _not_skipped(channels: Channels, step: PruneStep) -> list[Group]:
    """Groups none of whose layers is skipped."""
    if not channels.groups:
        reasons = sorted({f"{layer.name} {layer.frozen}" for layer in channels.layers if layer.frozen})[:5]
        raise Failure(Code.NOTHING_TO_PRUNE, "No channel of this network can be removed: " + "; ".join(reasons) + ".")
    names = [layer.name for layer in channels.layers]
    for choice in step.layers:
        if not any(fnmatchcase(name, choice.match) for name in names):
            near = difflib.get_close_matches(choice.match, names, n=3, cutoff=0.0)
            raise Failure(
                Code.NO_LAYER_MATCHES,
                f"`{choice.match}` matches no layer. The nearest names are {', '.join(near)}.",
                where=choice.match,
            )
    left = [group for group in channels.groups if not any(_skipped(layer, step) for layer in group.layers)]
    if not left:
        raise Failure(Code.NOTHING_TO_PRUNE, "Every group of channels has a layer that `layers` skips.")
    return left


def _scoring(step: PruneStep) -> Scoring:
    normalize = step.normalize or CRITERIA[step.criterion].normalize
    return Scoring(step.criterion, step.aggregate, normalize, step.normalize_over)


def _scorable(channels: Channels, groups: Sequence[Group], step: PruneStep) -> tuple[list[Group], list[dict[str, str]]]:
    """Groups that the criterion can rank, and why it cannot the others: one ranking passes those over, while the same
    fraction of every group cannot be had without them."""
    reasons = {group.id: reason for group in groups if (reason := unscorable(channels, group, step.criterion))}
    left = [group for group in groups if group.id not in reasons]
    if not left or (reasons and step.scope == "layer"):
        what = "; ".join(f"{name} {reason}" for name, reason in list(reasons.items())[:5])
        remedy = 'use another criterion, such as "l2"'
        if left:
            remedy += ', skip their layers, or use `"scope": "global"`, which leaves them alone'
        raise Failure(
            Code.NOTHING_TO_PRUNE, f"There are groups of channels that cannot be ranked: {what}. To go on, {remedy}."
        )
    return left, [{"id": name, "reason": reason} for name, reason in reasons.items()]


def _how_scored(scoring: Scoring, gradients: Gradients | None) -> dict[str, Any]:
    return {
        "criterion": scoring.criterion,
        "aggregate": scoring.aggregate,
        "normalize": scoring.normalize,
        "normalize_over": scoring.over,
        "gradients": None if gradients is None else {"loss": gradients.loss, "samples": gradients.samples},
    }


def _skipped(layer: str, step: PruneStep) -> bool:
    return any(fnmatchcase(layer, choice.match) for choice in step.layers)


def _cut_and_prove(
    subject: Subject, channels: Channels, selection: Selection, inputs: tuple[Tensor, ...]
) -> tuple[Tensor, float]:
    """Cut, and hold the result against the masked network. The removed ids, and the largest relative difference."""
    before = copy.deepcopy(subject.graph)
    removed = cut(channels, selection.removed)
    difference = prove(before, channels, selection.removed, subject.graph, inputs)
    if not difference <= TOLERANCE:
        group = _culprit(before, channels, selection, inputs)
        raise Failure(
            Code.VERIFICATION_FAILED,
            f"The network without the channels of {group} is not the one with these channels silenced: outputs differ "
            f"by {difference:.1e} of their size, {TOLERANCE:.0e} is allowed. Skip its layers and report this network.",
            where=group,
        )
    subject.masks = cut_masks(subject.masks, channels, selection.removed)
    return removed, difference


def _culprit(before: fx.GraphModule, channels: Channels, selection: Selection, inputs: tuple[Tensor, ...]) -> str:
    """The first group that fails when it is cut alone."""
    for group in channels.groups:
        removed = sorted(set(group.units) & set(selection.removed))
        if removed:
            graph = copy.deepcopy(before)
            again = analyse(graph, inputs)
            cut(again, removed)
            if not prove(before, again, removed, graph, inputs) <= TOLERANCE:
                return group.id
    return "several groups together"


def _details(
    step: PruneStep, candidates: Sequence[Candidate], selection: Selection, difference: float
) -> dict[str, Any]:
    removed = set(selection.removed)
    return {
        "quantity": step.amount.quantity,
        "asked": step.amount.fraction,
        "reached": round(selection.reached, 6),
        "why_missed": selection.why,
        "mask_check": difference,
        "groups": [
            {
                "id": candidate.group.id,
                "units_before": len(candidate.order),
                "units_after": len(candidate.order) - len(removed & set(candidate.order)),
                "layers": list(candidate.group.layers),
            }
            for candidate in candidates
        ],
    }
