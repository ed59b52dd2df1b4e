"""Units one by one: the least important first, from each group as many as its policy lets go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from models.prune_search import NEAR, Levels, Path, alike
from worker.engine.graph.channels import Channels
from worker.engine.graph.cut import cut
from worker.engine.prune.amounts import Counted, levels_by_score, own_level
from worker.engine.prune.choose import Round
from worker.engine.prune.limits import why_missed
from worker.engine.prune.select import Goal, Miss, ranked, reach, removed_by


@dataclass(frozen=True)
class Units:
    """A `Way`: levels have, for each candidate, the place in its choices."""

    now: Round

    def decided(self) -> Levels:
        return tuple(level for level in self._fixed if level is not None)

    def reach(self, quantity: Counted, wanted: float, near: float = NEAR) -> Levels:
        return reach(self.now.candidates, self._fixed, self._path, Goal(self.now.meter(quantity).gone, wanted, near))

    def removed(self, levels: Levels) -> tuple[int, ...]:
        return removed_by(self.now.candidates, levels)

    def left(self, quantity: Counted, levels: Levels) -> int:
        return self.now.meter(quantity).left(self.removed(levels))

    def why_missed(self, quantity: Counted, levels: Levels, wanted: float, near: float) -> Miss | None:
        goal = Goal(self.now.meter(quantity).gone, wanted, near)
        return why_missed(self.now.step, self.now.channels, self.now.candidates, self._fixed, levels, goal)

    def cut(self, channels: Channels, removed: Sequence[int]) -> Tensor:
        return cut(channels, removed)

    @cached_property
    def _path(self) -> Path:
        return (ranked if self.now.step.scope == "global" else alike)(self.now.candidates, self._fixed)

    @cached_property
    def _fixed(self) -> list[int | None]:
        """For each candidate the level that its own amount or its scores decide; None: it has a part in the step's."""
        step, amount, number = self.now.step, self.now.step.amount, self.now.number
        owned = [(each, each.policy.amount) for each in self.now.candidates]
        fixed = [None if own is None else own_level(each, own, step.schedule, number) for each, own in owned]
        if amount is None or amount.quantity is not None:
            return fixed
        free = [each for each, level in zip(self.now.candidates, fixed, strict=True) if level is None]
        by_score = iter(levels_by_score(free, amount, step.scope, step.schedule, number))
        return [next(by_score) if level is None else level for level in fixed]
