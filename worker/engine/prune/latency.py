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
    for a line through the cuts nearest to what is wanted, until one is near enough."""
    points = [(0.0, goal.at_start)]
    most = macs_gone(levels_at(1.0))
    probes: list[Probe] = []
    while len(probes) < MOST_CUTS:
        levels = levels_at(min(most, _guess(sorted(points), goal.wanted)))
        if any(levels == probe.levels for probe in probes):
            break
        timing = measure(levels)
        probe = Probe(levels, macs_gone(levels), goal.value(timing), timing)
        probes.append(probe)
        points.append((probe.macs_gone, probe.value))
        if abs(probe.value - goal.wanted) <= NEAR * goal.wanted:
            break
    return probes


def best(goal: LatencyGoal, probes: Sequence[Probe]) -> Probe:
    """The least cut of those that are fast enough, else the fastest."""
    enough = [probe for probe in probes if probe.value <= goal.wanted * (1 + NEAR)]
    if enough:
        return min(enough, key=lambda probe: probe.macs_gone)
    return min(probes, key=lambda probe: probe.value)


def _guess(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """Where the line through two cuts meets `wanted`; `points` are sorted and say (fraction gone, latency).

    Between the first cut that is fast enough and the one before it, never closer to either than a tenth, since
    measurements are noisy. While none is fast enough, beyond the last two; with one alone, or where the last took no
    less, as if a network without work took no time."""
    place = next((place for place, (_, value) in enumerate(points) if place and value <= wanted), None)
    if place is None:
        (gone, value), (before, slower) = points[-1], points[-2] if len(points) > 1 else points[-1]
        if value < slower:
            return gone + (gone - before) * (value - wanted) / (slower - value)
        return 1 - (1 - gone) * wanted / value
    (slow, slower), (fast, faster) = points[place - 1], points[place]
    return slow + (fast - slow) * min(0.9, max(0.1, (slower - wanted) / (slower - faster)))
