"""How many units each group loses so that an amount is reached: a search over counts alone. No torch: the engine prunes
by it, and a dry run foretells by it where scores have no say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.schedules import gone_after
from models.spec_prune import Amount, LayerAmount, Schedule

NEAR = 0.02
"""How far the fraction reached may be from the one asked for before it is called a miss."""

Levels = tuple[int, ...]
"""For each candidate, the place in its `choices`."""


class Shrinks(Protocol):
    """A group that may shrink. `choices` are the counts of units that may go, rising from none; `gone` of the
    `units_at_start` went in earlier rounds."""

    @property
    def choices(self) -> tuple[int, ...]: ...

    @property
    def gone(self) -> int: ...

    @property
    def units_at_start(self) -> int: ...


@dataclass(frozen=True)
class Path:
    """Levels that only grow along `length` positions."""

    length: int
    at: Callable[[int], Levels]


def nearest(candidate: Shrinks, wanted: float) -> int:
    """The place in `choices` nearest to `wanted` units; the smaller removal when two are equally near."""
    return min(range(len(candidate.choices)), key=lambda place: abs(candidate.choices[place] - wanted))


def alike(candidates: Sequence[Shrinks], fixed: Sequence[int | None]) -> Path:
    """Position k of a thousand: k thousandths of the units that each had are gone, as far as its choices allow."""
    parts = 1000

    def at(position: int) -> Levels:
        pairs = zip(candidates, fixed, strict=True)
        return tuple(
            nearest(each, each.units_at_start * position / parts - each.gone) if level is None else level
            for each, level in pairs
        )

    return Path(parts, at)


def reach(
    candidates: Sequence[Shrinks],
    fixed: Sequence[int | None],
    path: Path,
    gone: Callable[[Levels], float],
    wanted: float,
    near: float = NEAR,
) -> Levels:
    """The levels at which `gone`, a fraction of some quantity, comes nearest to `wanted`: by bisection on `path`, since
    more units gone is never less of any quantity gone; while that misses by more than `near`, by one step of the one
    candidate that helps most."""
    known: dict[Levels, float] = {}

    def miss(levels: Levels) -> float:
        if levels not in known:
            known[levels] = gone(levels) - wanted
        return known[levels]

    low, high = 0, path.length
    while high - low > 1:
        middle = (low + high) // 2
        if miss(path.at(middle)) < 0:
            low = middle
        else:
            high = middle
    levels = min((path.at(low), path.at(high)), key=lambda levels: abs(miss(levels)))
    while abs(miss(levels)) > near:
        best = min(moves(candidates, fixed, levels), key=lambda moved: abs(miss(moved)), default=levels)
        if abs(miss(best)) >= abs(miss(levels)):
            break
        levels = best
    return levels


def moves(candidates: Sequence[Shrinks], fixed: Sequence[int | None], levels: Levels) -> list[Levels]:
    """Every way to move one candidate that is not fixed by one step."""
    return [
        (*levels[:i], level + change, *levels[i + 1 :])
        for i, level in enumerate(levels)
        for change in (-1, 1)
        if fixed[i] is None and 0 <= level + change < len(candidates[i].choices)
    ]


def own_wanted(amount: LayerAmount, units_at_start: int, schedule: Schedule | None, number: int) -> float | None:
    """How many of its units a group's own amount wants gone after round `number`; None where scores decide."""
    if amount.target is not None:
        fraction = max(0.0, 1 - amount.target.channels / units_at_start)
    elif amount.channels is not None:
        fraction = amount.channels
    else:
        return None
    return gone_after(schedule, number, fraction) * units_at_start


def goal(amount: Amount, whole: float) -> tuple[float, float]:
    """The fraction of `whole` that is to go in the end, and how near is near enough: 2 % of what was there for a
    fraction, of what is to be left for a target. Not above zero: there is no more than the target already."""
    if amount.fraction is not None:
        return amount.fraction, NEAR
    if amount.left is None:
        raise ValueError("a threshold or a percentile is no fraction of a quantity")
    return 1 - amount.left / whole, NEAR * amount.left / whole
