"""What goes in one round: by the amount of the step, the amounts of its layers, thresholds, or what was measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from models.errors import Code, Failure
from models.prune_search import NEAR, Levels, Path, alike
from models.prune_search import goal as prune_goal
from models.schedules import gone_after
from models.spec import PruneStep
from worker.engine.graph.channels import Channels, analyse
from worker.engine.graph.cut import cut
from worker.engine.prune.amounts import Beginning, Counted, Meter, levels_by_score, own_level
from worker.engine.prune.latency import LatencyGoal, Probe, Timing, best, search
from worker.engine.prune.limits import why_missed
from worker.engine.prune.select import Candidate, Goal, ranked, reach, removed_by


@dataclass(frozen=True)
class Choice:
    """What goes. `asked` and `reached` are the fractions of the quantity that are gone by the end of the round, `left`
    is what stays of it. `why` says what kept `reached` from coming nearer, `limit` which group; `measured` has the cuts
    that were run."""

    removed: tuple[int, ...]
    asked: float | None
    reached: float
    left: float
    why: str | None = None
    limit: str | None = None
    measured: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Round:
    """The `number`th (from 1), of a network in which `removed_before` units went already. `at_start` was measured
    before the first, where latency counts."""

    step: PruneStep
    number: int
    channels: Channels
    candidates: Sequence[Candidate]
    beginning: Beginning
    removed_before: int
    at_start: Timing | None = None

    def meter(self, quantity: Counted) -> Meter:
        return Meter(quantity, self.channels, self.beginning, self.removed_before)

    def by_now(self, amount: float) -> float:
        return gone_after(self.step.schedule, self.number, amount)


def choose(now: Round, time: Callable[[fx.GraphModule], Timing], inputs: tuple[Tensor, ...]) -> Choice:
    """Raises `Failure(NOTHING_TO_PRUNE)` when the network is as small or as fast as asked before anything goes."""
    amount, fixed = now.step.amount, _fixed(now)
    if amount is None or amount.quantity is None:
        removed = removed_by(now.candidates, tuple(level for level in fixed if level is not None))
        meter = now.meter("channels")
        return Choice(removed, None, meter.gone(removed), meter.left(removed))
    path = (ranked if now.step.scope == "global" else alike)(now.candidates, fixed)
    if amount.quantity == "latency":
        return _by_latency(now, fixed, path, time, inputs)
    meter = now.meter(amount.quantity)
    final, near = prune_goal(amount, meter.whole)
    if final <= 0:
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"The network has {meter.whole:,} {amount.quantity}, which is no more than the {amount.left:,.0f} that "
            "are to be left. Lower the target.",
        )
    goal = Goal(meter.gone, now.by_now(final), near)
    levels = reach(now.candidates, fixed, path, goal)
    removed = removed_by(now.candidates, levels)
    why, limit = why_missed(now.step, now.channels, now.candidates, fixed, levels, goal) or (None, None)
    return Choice(removed, goal.wanted, meter.gone(removed), meter.left(removed), why, limit)


def _fixed(now: Round) -> list[int | None]:
    """For each candidate the level that its own amount or its scores decide; None has a part in the step's amount."""
    step, amount = now.step, now.step.amount
    fixed: list[int | None] = [
        own_level(each, each.policy.amount, step.schedule, now.number) if each.policy.amount is not None else None
        for each in now.candidates
    ]
    if amount is None or amount.quantity is not None:
        return fixed
    free = [each for each, level in zip(now.candidates, fixed, strict=True) if level is None]
    by_score = iter(levels_by_score(free, amount, step.scope, step.schedule, now.number))
    return [next(by_score) if level is None else level for level in fixed]


def _by_latency(
    now: Round,
    fixed: Sequence[int | None],
    path: Path,
    time: Callable[[fx.GraphModule], Timing],
    inputs: tuple[Tensor, ...],
) -> Choice:
    goal, final = _latency_goal(now)
    macs = now.meter("macs")

    def gone(levels: Levels) -> float:
        return macs.gone(removed_by(now.candidates, levels))

    def levels_at(fraction: float) -> Levels:
        return reach(now.candidates, fixed, path, Goal(macs.gone, fraction))

    def measure(levels: Levels) -> Timing:
        graph = copy.deepcopy(now.channels.graph)
        cut(analyse(graph, inputs), removed_by(now.candidates, levels))
        return time(graph)

    probes = search(goal, levels_at, gone, measure)
    found = best(goal, probes)
    removed = removed_by(now.candidates, found.levels)
    why, limit = None, None
    if abs(found.value - goal.wanted) > NEAR * goal.wanted:
        smallest = Goal(macs.gone, 1.0, 0.0)
        at_end = found.value > goal.wanted and found.levels == levels_at(1.0)
        held = why_missed(now.step, now.channels, now.candidates, fixed, found.levels, smallest) if at_end else None
        why, limit = held or (f"of the {len(probes)} cuts that were measured none came nearer", None)
    return Choice(
        removed,
        now.by_now(final),
        1 - found.value / goal.at_start,
        found.timing.network.p50,
        why,
        limit,
        [_told(probe) for probe in probes],
    )


def _latency_goal(now: Round) -> tuple[LatencyGoal, float]:
    """The goal of this round, and the fraction that is to go in the end. Milliseconds are held against milliseconds,
    a fraction against the ratio to the original network measured in turn."""
    amount, start = now.step.amount, now.at_start
    assert amount is not None
    assert start is not None
    if amount.fraction is not None:
        wanted = start.ratio * (1 - now.by_now(amount.fraction))
        return LatencyGoal(lambda timing: timing.ratio, wanted, start.ratio), amount.fraction
    assert amount.left is not None
    at_start = start.network.p50
    final = 1 - amount.left / at_start
    if final <= 0:
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"The network takes {at_start:.3f} ms on this machine, which is no more than the {amount.left:g} ms asked "
            "for. Lower the target.",
        )
    wanted = at_start * (1 - now.by_now(final))
    return LatencyGoal(lambda timing: timing.network.p50, wanted, at_start), final


def _told(probe: Probe) -> dict[str, Any]:
    return {
        "macs_removed": round(probe.macs_gone, 6),
        "latency_ms": probe.timing.network.model_dump(),
        "original_latency_ms": probe.timing.original.model_dump(),
    }
