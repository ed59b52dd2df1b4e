"""Amounts: quantities counted by arithmetic on labels, and levels that a layer's own amount or a score decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.prune_search import nearest, own_wanted
from models.schedules import gone_after
from models.spec import Amount, LayerAmount, Schedule
from worker.engine.graph.channels import Channels, Group
from worker.engine.graph.cost import bytes_after, macs_after, parameters_after
from worker.engine.graph.cut import Cut
from worker.engine.prune.select import Candidate
from worker.engine.score.slices import Scores

Counted = Literal["channels", "parameters", "macs", "bytes"]


@dataclass(frozen=True)
class Beginning:
    """What there was before the step: `units` of each group that may shrink, by its signature, and the quantities.
    `channels` counts the units of those groups together."""

    units: Mapping[str, int]
    parameters: int
    macs: int
    bytes: int

    @classmethod
    def of(cls, channels: Channels, groups: Sequence[Group]) -> Beginning:
        uncut = Cut(channels, ())
        units = {signature(group): len(group.units) for group in groups}
        return cls(units, parameters_after(uncut), macs_after(uncut), bytes_after(uncut))

    @property
    def channels(self) -> int:
        return sum(self.units.values())


def signature(group: Group) -> str:
    """The same group in another round: it still runs through the same dimensions."""
    return " ".join(f"{member.parameter}:{member.dim}" for member in group.members)


@dataclass(frozen=True)
class Meter:
    """Counts `quantity` as a cut of `channels` would leave it. `removed_before` units went in earlier rounds."""

    quantity: Counted
    channels: Channels
    beginning: Beginning
    removed_before: int = 0

    def left(self, removed: Sequence[int]) -> int:
        if self.quantity == "channels":
            return self.beginning.channels - self.removed_before - len(removed)
        count = {"parameters": parameters_after, "macs": macs_after, "bytes": bytes_after}[self.quantity]
        return count(Cut(self.channels, removed))

    def gone(self, removed: Sequence[int]) -> float:
        """The fraction of what there was at the beginning."""
        return 1 - self.left(removed) / self.whole

    @property
    def whole(self) -> int:
        return int(getattr(self.beginning, self.quantity))


def levels_by_score(
    candidates: Sequence[Candidate], amount: Amount, scope: str, schedule: Schedule | None, number: int
) -> list[int]:
    """For a threshold or a percentile of the whole step: units that score lower go, no other."""
    if amount.threshold is not None:
        return [_below(candidate, amount.threshold) for candidate in candidates]
    assert amount.percentile is not None
    share = gone_after(schedule, number, amount.percentile / 100)
    if scope == "layer":
        return [_below(each, _quantile(each.scores, each.gone, share)) for each in candidates]
    scores = np.concatenate([candidate.scores for candidate in candidates] or [np.zeros(0)])
    bound = _quantile(scores, sum(candidate.gone for candidate in candidates), share)
    return [_below(candidate, bound) for candidate in candidates]


def own_level(candidate: Candidate, amount: LayerAmount, schedule: Schedule | None, number: int) -> int:
    """The place in a candidate's choices that its own amount asks for, after round `number`."""
    if amount.threshold is not None:
        return _below(candidate, amount.threshold)
    if amount.percentile is not None:
        share = gone_after(schedule, number, amount.percentile / 100)
        return _below(candidate, _quantile(candidate.scores, candidate.gone, share))
    wanted = own_wanted(amount, candidate.units_at_start, schedule, number)
    assert wanted is not None
    return nearest(candidate, wanted - candidate.gone)


def _below(candidate: Candidate, bound: float) -> int:
    return candidate.at_most(int(np.count_nonzero(candidate.scores < bound)))


def _quantile(scores: Scores, gone: int, share: float) -> float:
    """The score at a quantile; units that went earlier scored less than any that is left."""
    if not len(scores):
        return -np.inf
    return float(np.quantile(np.concatenate([np.full(gone, -np.inf), scores]), share, method="higher"))
