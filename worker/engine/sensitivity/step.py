"""The sensitivity step: try the network without some channels of one group at a time, and put them back."""

from __future__ import annotations

import copy
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from models.criteria import CRITERIA
from models.errors import Code, Failure
from models.report import Measurement
from models.spec import SensitivityStep
from models.statuses import Phase
from worker.engine.assess import assess
from worker.engine.graph.channels import Channels, Group, analyse
from worker.engine.graph.cut import cut
from worker.engine.run import Run
from worker.engine.score.groups import score_groups
from worker.engine.score.slices import Scores
from worker.engine.score.units import Scoring, unscorable
from worker.engine.subject import StepState, Subject


def run(subject: Subject, step: SensitivityStep, run: Run) -> dict[str, Any]:
    """For each group and each of `step.amounts`: what the network without that part measures, before any training.

    `subject` is left as it was. Raises `Failure` with `nothing_to_prune` when no group has a channel to spare.
    """
    run.phase(Phase.MEASURING)
    subject.graph.to(run.device)
    channels = analyse(subject.graph, tuple(value.to(run.device) for value in subject.example_inputs()))
    groups = [group for group in channels.groups if _is_tried(group, channels, step)]
    if not groups:
        raise Failure(Code.NOTHING_TO_PRUNE, "No group of channels is left to try: skip fewer layers.")
    scoring = Scoring(step.criterion, normalize=CRITERIA[step.criterion].normalize)
    seed = run.spec.seed + (run.step_index or 0)
    scores, _ = score_groups(subject, run, channels, [(group, scoring) for group in groups], step.samples, seed)
    measured = _measured_on_less(run, step)
    found: list[dict[str, Any]] = run.state.data["groups"] if run.state is not None else []
    with run.interrupts.listening():
        for place, (group, own) in enumerate(zip(groups, scores, strict=True)):
            if place < len(found):
                continue
            if run.interrupts.out_of_time():
                break
            points = [_without(subject, channels, group, own, count, measured) for count in _counts(group, step)]
            found.append({"id": group.id, "layers": list(group.layers), "units": len(group.units), "points": points})
            run.progress(0.5 + (place + 1) / len(groups) / 2)
            if run.interrupts.state_due():
                run.keep_state(StepState({"groups": found}, {}))
    return {
        "criterion": step.criterion,
        "unchanged": _numbers(assess(subject, measured)),
        "groups": found,
        "cut_short": len(found) < len(groups),
    }


def _is_tried(group: Group, channels: Channels, step: SensitivityStep) -> bool:
    skipped = any(fnmatchcase(layer, choice.match) for layer in group.layers for choice in step.layers)
    return len(group.units) > 1 and not skipped and unscorable(channels, group, step.criterion) is None


def _measured_on_less(run: Run, step: SensitivityStep) -> Run:
    """`run`, with no more validation samples than asked for."""
    if run.data is None or step.validation_samples is None:
        return run
    return replace(run, data=replace(run.data, val=run.data.val.drawn(step.validation_samples, run.spec.seed)))


def _counts(group: Group, step: SensitivityStep) -> list[int]:
    """How many units to try without: at least one, never all, no number twice."""
    units = len(group.units)
    return sorted({min(max(round(amount * units), 1), units - 1) for amount in step.amounts})


def _without(
    subject: Subject, channels: Channels, group: Group, scores: Scores, count: int, run: Run
) -> dict[str, Any]:
    order = np.argsort(scores, kind="stable")[:count]
    plan = copy.deepcopy(channels)
    with torch.no_grad():
        cut(plan, np.asarray(group.units)[order].tolist())
    return {"removed": count} | _numbers(assess(replace(subject, graph=plan.graph), run))


def _numbers(measured: Measurement) -> dict[str, Any]:
    return measured.model_dump(mode="json", include={"metrics", "agreement_with_original", "parameters", "macs"})
