"""Choosing what goes: a ranking of units, cut off where the amount asked for is reached.

How much is left is recounted by arithmetic on labels, so the search never runs the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from models import prune_search
from models.prune_policy import Policy, removable_counts
from models.prune_search import NEAR, Levels, Path, nearest
from worker.engine.graph.channels import Group
from worker.engine.score.slices import Scores


@dataclass(frozen=True)
class Candidate:
    """A group that may shrink. `order` has its units, the least important first; `choices` are the counts of units
    that its policy lets go, none first; `gone` of its units went in earlier rounds."""

    group: Group
    policy: Policy
    scores: Scores
    order: tuple[int, ...]
    choices: tuple[int, ...]
    gone: int = 0

    @classmethod
    def of(cls, group: Group, policy: Policy, scores: Scores, gone: int = 0) -> Candidate:
        order = np.asarray(group.units)[np.argsort(scores, kind="stable")]
        choices = removable_counts(len(group.units), group.widths, policy, len(group.units) + gone)
        return cls(group, policy, scores, tuple(order.tolist()), tuple(choices), gone)

    @property
    def units_at_start(self) -> int:
        return len(self.order) + self.gone

    def at_most(self, count: int) -> int:
        """The place in `choices` of the largest removal of no more than `count` units."""
        return sum(choice <= count for choice in self.choices) - 1


Miss = tuple[str, "str | None"]
"""Why an amount was missed, in words, and the id of the group that limits, if one does."""


@dataclass(frozen=True)
class Goal:
    """`gone` is the fraction of a quantity that goes with some units; `wanted` is to go, `near` is near enough."""

    gone: Callable[[tuple[int, ...]], float]
    wanted: float
    near: float = NEAR


def removed_by(candidates: Sequence[Candidate], levels: Levels) -> tuple[int, ...]:
    """Component ids, sorted."""
    pairs = zip(candidates, levels, strict=True)
    return tuple(sorted(u for candidate, level in pairs for u in candidate.order[: candidate.choices[level]]))


def ranked(candidates: Sequence[Candidate], fixed: Sequence[int | None]) -> Path:
    """Position k: the k smallest scores of all that are not fixed are gone, as far as their choices allow."""
    free = [candidate for candidate, level in zip(candidates, fixed, strict=True) if level is None]
    scores = np.concatenate([np.sort(candidate.scores, kind="stable") for candidate in free] or [np.zeros(0)])
    owners = np.concatenate([np.full(len(each.order), i) for i, each in enumerate(free)] or [np.zeros(0, int)])
    owners = owners[np.argsort(scores, kind="stable")]

    def at(position: int) -> Levels:
        counts = iter(np.bincount(owners[:position], minlength=len(free)).tolist())
        pairs = zip(candidates, fixed, strict=True)
        return tuple(nearest(each, next(counts)) if level is None else level for each, level in pairs)

    return Path(len(owners), at)


def reach(candidates: Sequence[Candidate], fixed: Sequence[int | None], path: Path, goal: Goal) -> Levels:
    """The levels that bring `goal` nearest."""
    return prune_search.reach(
        candidates, fixed, path, lambda levels: goal.gone(removed_by(candidates, levels)), goal.wanted, goal.near
    )
