"""Scores for many groups at once, each by its own criterion, from one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence

from models.criteria import GradientLoss
from worker.engine.graph.channels import Channels, Group
from worker.engine.run import Run
from worker.engine.score.gradients import Gradients, gather
from worker.engine.score.slices import Scores
from worker.engine.score.units import Scoring, statistics_for, unit_scores
from worker.engine.subject import Subject


def score_groups(
    subject: Subject,
    run: Run,
    channels: Channels,
    choices: Sequence[tuple[Group, Scoring]],
    samples: int | None,
    seed: int,
    loss: GradientLoss | None = None,
) -> tuple[list[Scores], Gradients | None]:
    """The scores of each group's units, in the order of `choices`; what gradients were gathered, where any were needed.

    `loss` is differentiated for `samples` training samples; `run.progress` rises to one half meanwhile. No group may be
    `unscorable` by its criterion. Raises what `gather` raises.
    """
    statistics = statistics_for(scoring.criterion for _, scoring in choices)
    gradients = None
    if statistics:
        gradients = gather(
            subject, run, statistics, samples, seed, channels, loss, on_progress=lambda done: run.progress(done / 2)
        )
    return [unit_scores(channels, group, scoring, seed, gradients) for group, scoring in choices], gradients
