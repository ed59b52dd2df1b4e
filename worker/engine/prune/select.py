"""Choosing what goes: a ranking of units, cut off where the amount asked for is reached.

How much is left is recounted by arithmetic on labels, so the search never runs the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models.spec import Amount
from worker.engine.graph.channels import Channels, Group
from worker.engine.graph.cost import macs_after, parameters_after
from worker.engine.graph.cut import Cut
from worker.engine.score.slices import Scores

NEAR = 0.02
"""How far the fraction reached may be from the one asked for before it is called a miss."""


@dataclass(frozen=True)
class Candidate:
    """A group that may shrink. `order` has its units, the least important first; `choices` are the counts of
    units that may go, none first: what stays then makes the channels of its layers multiples of `round_to`."""

    group: Group
    scores: Scores
    order: tuple[int, ...]
    choices: tuple[int, ...]

    @classmethod
    def of(cls, group: Group, scores: Scores, round_to: int) -> Candidate:
        order = np.argsort(scores, kind="stable")
        step = math.lcm(*(round_to // math.gcd(round_to, width) for width in group.widths))
        units = len(group.units)
        choices = (0, *(units - left for left in range((units - 1) // step * step, 0, -step)))
        return cls(group, scores, tuple(np.asarray(group.units)[order].tolist()), choices)

    def nearest(self, wanted: float) -> int:
        """The place in `choices` nearest to `wanted` units; the smaller removal when two are equally near."""
        return int(np.argmin([abs(choice - wanted) for choice in self.choices]))


Levels = tuple[int, ...]
"""For each candidate, the place in its `choices`."""


@dataclass(frozen=True)
class Selection:
    """What goes, and the fraction of the quantity that goes with it. `why` says what kept it from coming nearer."""

    removed: tuple[int, ...]
    reached: float
    why: str | None


def select(channels: Channels, candidates: Sequence[Candidate], amount: Amount, scope: str) -> Selection:
    """Choose units until `amount` is removed, as near as `round_to` allows.

    `global` takes the smallest scores of all candidates together; `layer` the same fraction of each. Channels are
    counted over the candidates, parameters and multiply-accumulates over the whole network.
    """
    gone = _meter(channels, candidates, amount)
    levels = _search(_ranked(candidates) if scope == "global" else _alike(candidates), gone, amount.fraction)
    levels = _refine(candidates, levels, gone, amount.fraction)
    reached = gone(levels)
    return Selection(removed_by(candidates, levels), reached, _why(candidates, reached, amount.fraction))


def removed_by(candidates: Sequence[Candidate], levels: Levels) -> tuple[int, ...]:
    """Component ids, sorted."""
    pairs = zip(candidates, levels, strict=True)
    return tuple(sorted(u for candidate, level in pairs for u in candidate.order[: candidate.choices[level]]))


def _meter(channels: Channels, candidates: Sequence[Candidate], amount: Amount) -> Callable[[Levels], float]:
    """The fraction of the quantity that goes at given levels."""
    total_channels = sum(len(candidate.order) for candidate in candidates)
    count = parameters_after if amount.quantity == "parameters" else macs_after
    whole = count(Cut(channels, ())) if amount.quantity != "channels" else total_channels
    known: dict[Levels, float] = {}

    def gone(levels: Levels) -> float:
        if levels not in known:
            removed = removed_by(candidates, levels)
            left = total_channels - len(removed) if amount.quantity == "channels" else count(Cut(channels, removed))
            known[levels] = 1 - left / whole
        return known[levels]

    return gone


@dataclass(frozen=True)
class _Path:
    """Levels that only grow along `length` positions."""

    length: int
    at: Callable[[int], Levels]


def _ranked(candidates: Sequence[Candidate]) -> _Path:
    """Position k: the k smallest scores of all are gone, as far as steps allow."""
    scores = np.concatenate([np.sort(candidate.scores, kind="stable") for candidate in candidates])
    owners = np.concatenate([np.full(len(candidate.order), i) for i, candidate in enumerate(candidates)])
    owners = owners[np.argsort(scores, kind="stable")]

    def at(position: int) -> Levels:
        counts = np.bincount(owners[:position], minlength=len(candidates))
        return tuple(candidate.nearest(count) for candidate, count in zip(candidates, counts.tolist(), strict=True))

    return _Path(len(owners), at)


def _alike(candidates: Sequence[Candidate]) -> _Path:
    """Position k of a thousand: k thousandths of every candidate's units are gone, as far as steps allow."""
    parts = 1000

    def at(position: int) -> Levels:
        return tuple(candidate.nearest(len(candidate.order) * position / parts) for candidate in candidates)

    return _Path(parts, at)


def _search(path: _Path, gone: Callable[[Levels], float], wanted: float) -> Levels:
    """Bisection: more units gone is never less of any quantity gone. The nearer of the two neighbours."""
    low, high = 0, path.length
    while high - low > 1:
        middle = (low + high) // 2
        if gone(path.at(middle)) < wanted:
            low = middle
        else:
            high = middle
    return min((path.at(low), path.at(high)), key=lambda levels: abs(gone(levels) - wanted))


def _refine(candidates: Sequence[Candidate], levels: Levels, gone: Callable[[Levels], float], wanted: float) -> Levels:
    """While the miss is too large, move the one candidate by one step that brings the amount nearest."""
    while abs(gone(levels) - wanted) > NEAR:
        moves = [
            (*levels[:i], level + change, *levels[i + 1 :])
            for i, level in enumerate(levels)
            for change in (-1, 1)
            if 0 <= level + change < len(candidates[i].choices)
        ]
        best = min(moves, key=lambda moved: abs(gone(moved) - wanted), default=levels)
        if abs(gone(best) - wanted) >= abs(gone(levels) - wanted):
            break
        levels = best
    return levels


def _why(candidates: Sequence[Candidate], reached: float, wanted: float) -> str | None:
    if abs(reached - wanted) <= NEAR:
        return None
    if reached < wanted and all(len(candidate.choices) == 1 for candidate in candidates):
        return "no group is large enough to lose a step of `round_to` channels"
    if reached < wanted:
        return "every group that may shrink is at its smallest, or the next step of `round_to` channels is too large"
    return "one step of `round_to` channels removes more than was asked for"
