"""Whole groups: branches go one after the other, the least important first, until enough is gone.

A branch that goes takes more with it than its units (what follows them up to where it joined), so what is left is
counted on a copy of the network without it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from models.criteria import needs_gradients
from models.prune_search import NEAR, Levels, Path, reach
from models.schedules import gone_after
from worker.engine.graph.bypass import Bypasses, bypass
from worker.engine.graph.channels import Channels, analyse
from worker.engine.graph.cost import macs, parameters
from worker.engine.prune.amounts import Counted
from worker.engine.prune.choose import Round
from worker.engine.prune.select import Candidate, Miss


@dataclass(frozen=True)
class Branches:
    """A `Way`: the one level is how many branches go. `scores` are theirs, rising; `units` those of each.

    A branch's score is the sum over its units where scores estimate what the loss loses, else their mean; nothing is
    normalised, or all groups would come out alike.
    """

    now: Round
    inputs: tuple[Tensor, ...]
    scores: tuple[float, ...]
    units: tuple[tuple[int, ...], ...]
    ids: tuple[str, ...]
    known: dict[tuple[Counted, Levels], int] = field(default_factory=dict)

    @classmethod
    def of(cls, now: Round, inputs: tuple[Tensor, ...]) -> Branches:
        """Of the groups that may shrink; a branch with any other stays, as does one that cannot go beside those that
        score less."""
        bypasses = Bypasses(now.channels)
        candidates = {candidate.group.id: candidate for candidate in now.candidates}
        free = [branch for branch in bypasses.branches() if all(each.id in candidates for each in branch.groups)]
        scored = [(_score([candidates[group.id] for group in branch.groups]), branch) for branch in free]
        taken: list[int] = []
        kept = []
        for score, branch in sorted(scored, key=lambda pair: pair[0]):
            if bypasses.can_go([*taken, *branch.units]):
                taken += branch.units
                kept.append((score, branch))
        return cls(
            now,
            inputs,
            tuple(score for score, _ in kept),
            tuple(branch.units for _, branch in kept),
            tuple(branch.groups[0].id for _, branch in kept),
        )

    def decided(self) -> Levels:
        amount = self.now.step.amount
        assert amount is not None
        bound = amount.threshold
        if bound is None:
            assert amount.percentile is not None
            share = gone_after(self.now.step.schedule, self.now.number, amount.percentile / 100)
            bound = float(np.quantile(self.scores, share, method="higher"))
        return (sum(score < bound for score in self.scores),)

    def reach(self, quantity: Counted, wanted: float, near: float = NEAR) -> Levels:
        whole = getattr(self.now.beginning, quantity)
        path = Path(len(self.units), lambda position: (position,))
        # No single step to refine by: the nearest of the path is the nearest there is.
        return reach([], [], path, lambda levels: 1 - self.left(quantity, levels) / whole, wanted, math.inf)

    def removed(self, levels: Levels) -> tuple[int, ...]:
        return tuple(sorted({unit for units in self.units[: levels[0]] for unit in units}))

    def left(self, quantity: Counted, levels: Levels) -> int:
        if (quantity, levels) not in self.known:
            self.known[quantity, levels] = self._count(quantity, self.removed(levels))
        return self.known[quantity, levels]

    def why_missed(self, quantity: Counted, levels: Levels, wanted: float, near: float) -> Miss | None:
        whole, count = getattr(self.now.beginning, quantity), levels[0]
        reached = 1 - self.left(quantity, levels) / whole
        if abs(reached - wanted) <= near:
            return None
        if reached < wanted and count == len(self.units):
            return "no other group can go as a whole", None
        place = count if reached < wanted else count - 1
        step = abs(self.left(quantity, (place + 1,)) - self.left(quantity, (place,))) / whole
        return f"the next step, all of {self.ids[place]}, is {step:.1%}", self.ids[place]

    def cut(self, channels: Channels, removed: Sequence[int]) -> Tensor:
        return bypass(channels, removed)

    def _count(self, quantity: Counted, removed: Sequence[int]) -> int:
        if quantity == "channels":
            return self.now.meter("channels").left(removed)
        graph = copy.deepcopy(self.now.channels.graph)
        bypass(analyse(graph, self.inputs), removed)
        if quantity == "macs":
            return sum(macs(graph, self.inputs).values())
        if quantity == "parameters":
            return parameters(graph)
        return sum(tensor.numel() * tensor.element_size() for tensor in (*graph.parameters(), *graph.buffers()))


def _score(candidates: Sequence[Candidate]) -> float:
    scores = np.concatenate([candidate.scores for candidate in candidates])
    return float(scores.sum() if needs_gradients(candidates[0].policy.criterion) else scores.mean())
