"""What goes in one round: by the amount of the step, the amounts of its layers, thresholds, or what was measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, fx

from models.errors import Code, Failure
from models.prune_search import NEAR, Levels
from models.prune_search import goal as prune_goal
from models.schedules import gone_after
from models.spec import PruneStep
from worker.engine.graph.channels import Channels, analyse
from worker.engine.prune.amounts import Beginning, Counted, Meter
from worker.engine.prune.latency import LatencyGoal, Probe, Timing, best, search
from worker.engine.prune.select import Candidate, Miss


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


class Way(Protocol):
    """How units go: one by one from each group, or whole groups. Levels say how far."""

    def decided(self) -> Levels:
        """What scores alone decide, or the amounts of layers."""

    def reach(self, quantity: Counted, wanted: float, near: float = NEAR) -> Levels:
        """The levels at which the fraction of `quantity` that is gone comes nearest to `wanted`."""

    def removed(self, levels: Levels) -> tuple[int, ...]:
        """Component ids, sorted."""

    def left(self, quantity: Counted, levels: Levels) -> int:
        """What stays."""

    def why_missed(self, quantity: Counted, levels: Levels, wanted: float, near: float) -> Miss | None:
        """Nothing when `wanted` was reached."""

    def cut(self, channels: Channels, removed: Sequence[int]) -> Tensor:
        """Take units out of an equal graph, in place."""


def choose(now: Round, way: Way, time: Callable[[fx.GraphModule], Timing], inputs: tuple[Tensor, ...]) -> Choice:
    """Raises `Failure(NOTHING_TO_PRUNE)` when the network is as small or as fast as asked before anything goes."""
    amount = now.step.amount
    if amount is None or amount.quantity is None:
        levels, quantity = way.decided(), "channels"
        left = way.left("channels", levels)
        return Choice(way.removed(levels), None, 1 - left / now.beginning.channels, left)
    if amount.quantity == "latency":
        return _by_latency(now, way, time, inputs)
    quantity = amount.quantity
    whole = getattr(now.beginning, quantity)
    final, near = prune_goal(amount, whole)
    if final <= 0:
        raise Failure(
            Code.NOTHING_TO_PRUNE,
            f"The network has {whole:,} {quantity}, which is no more than the {amount.left:,.0f} that are to be left. "
            "Lower the target.",
        )
    wanted = now.by_now(final)
    levels = way.reach(quantity, wanted, near)
    left = way.left(quantity, levels)
    why, limit = way.why_missed(quantity, levels, wanted, near) or (None, None)
    return Choice(way.removed(levels), wanted, 1 - left / whole, left, why, limit)


def _by_latency(now: Round, way: Way, time: Callable[[fx.GraphModule], Timing], inputs: tuple[Tensor, ...]) -> Choice:
    goal, final = _latency_goal(now)

    def macs_gone(levels: Levels) -> float:
        return 1 - way.left("macs", levels) / now.beginning.macs

    def measure(levels: Levels) -> Timing:
        graph = copy.deepcopy(now.channels.graph)
        way.cut(analyse(graph, inputs), way.removed(levels))
        return time(graph)

    probes = search(goal, lambda fraction: way.reach("macs", fraction), macs_gone, measure)
    found = best(goal, probes)
    why, limit = None, None
    if abs(found.value - goal.wanted) > NEAR * goal.wanted:
        at_end = found.value > goal.wanted and found.levels == way.reach("macs", 1.0)
        held = way.why_missed("macs", found.levels, 1.0, 0.0) if at_end else None
        why, limit = held or (f"of the {len(probes)} cuts that were measured none came nearer", None)
    return Choice(
        way.removed(found.levels),
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
