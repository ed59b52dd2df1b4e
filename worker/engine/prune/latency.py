"""Reaching a latency: candidate cuts are exported and run, few of them, along the ranking.

Nothing is predicted: multiply-accumulates only say where to look next, and what is chosen was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.prune_search import NEAR, Levels
from models.report import Latency

MOST_CUTS = 6
"""Exports that one search may take."""


@dataclass(frozen=True)
class Timing:
    """A network and the original one, measured in turn."""

    network: Latency
    original: Latency

    @property
    def ratio(self) -> float:
        """To the original: what a load on the machine leaves alone."""
        return self.network.p50 / self.original.p50


@dataclass(frozen=True)
class Probe:
    """A candidate cut: `macs_gone` is where it lies, `value` is what was measured, in the goal's terms."""

    levels: Levels
    macs_gone: float
    value: float
    timing: Timing


@dataclass(frozen=True)
class LatencyGoal:
    """`value` reads a timing (milliseconds, or the ratio to the original); it is to be `wanted` or less, and was
    `at_start` before anything was cut."""

    value: Callable[[Timing], float]
    wanted: float
    at_start: float


def search(
    goal: LatencyGoal,
    levels_at: Callable[[float], Levels],
    macs_gone: Callable[[Levels], float],
    measure: Callable[[Levels], Timing],
) -> list[Probe]:
    """The cuts that were measured, in that order: latency against the fraction of multiply-accumulates gone is taken
    for a line between the nearest cut that is too slow and the nearest that is not, until one is near enough."""
    slow, fast = (0.0, goal.at_start), None
    most = macs_gone(levels_at(1.0))
    probes: list[Probe] = []
    while len(probes) < MOST_CUTS:
        levels = levels_at(min(most, _guess(slow, fast, goal.wanted)))
        if any(levels == probe.levels for probe in probes):
            break
        timing = measure(levels)
        probe = Probe(levels, macs_gone(levels), goal.value(timing), timing)
        probes.append(probe)
        if abs(probe.value - goal.wanted) <= NEAR * goal.wanted:
            break
        if probe.value > goal.wanted:
            slow = max(slow, (probe.macs_gone, probe.value))
        else:
            fast = (probe.macs_gone, probe.value) if fast is None else min(fast, (probe.macs_gone, probe.value))
    return probes


def best(goal: LatencyGoal, probes: Sequence[Probe]) -> Probe:
    """The least cut of those that are fast enough, else the fastest."""
    enough = [probe for probe in probes if probe.value <= goal.wanted * (1 + NEAR)]
    if enough:
        return min(enough, key=lambda probe: probe.macs_gone)
    return min(probes, key=lambda probe: probe.value)


def _guess(slow: tuple[float, float], fast: tuple[float, float] | None, wanted: float) -> float:
    """Where a line through two cuts meets `wanted`. Without a fast enough one, a network without work takes no time;
    with one, never closer to either than a tenth, since measurements are noisy."""
    if fast is None:
        return 1 - (1 - slow[0]) * wanted / slow[1]
    share = (slow[1] - wanted) / (slow[1] - fast[1]) if slow[1] > fast[1] else 0.5
    return slow[0] + (fast[0] - slow[0]) * min(0.9, max(0.1, share))
