"""How many threads should read batches: tried by training on the data as it is read."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worker.engine.data.dataset import Batch, Split
from worker.engine.masks import Masks
from worker.engine.train.feed import READ_AHEAD, on_device
from worker.engine.train.loop import Plan
from worker.engine.train.state import device_of
from worker.engine.train.trial import LEAST_GAIN, trial

ROUNDS = 3
"""In each, either of two counts takes its steps in turn, so that a busy machine slows both alike."""
LEAST_STEPS = 4
"""In a round; and two for each thread, which begin together and so end together."""
LONGEST_SECONDS = 30.0
"""No round begins after so long."""


@dataclass(frozen=True)
class ChosenLoaders:
    """`tried` are the counts, one first, each with the samples a second and the share of the time for which steps
    `waited` for batches. Empty: there was nothing to choose. `gain` is that of `count` threads over one, each doubling
    measured in turns with what it doubles."""

    count: int
    tried: tuple[dict[str, Any], ...] = ()
    gain: float = 1.0

    def as_details(self) -> dict[str, Any]:
        """For the report. `loaders_gain`: how many times as fast as one thread, where that was measured."""
        found: dict[str, Any] = {"loaders": self.count}
        if self.tried:
            found |= {"loaders_gain": round(self.gain, 3), "loaders_measured": list(self.tried)}
        return found


@dataclass(frozen=True)
class _Pace:
    samples_per_second: float
    waited: float

    def as_row(self, loaders: int) -> dict[str, Any]:
        return {
            "loaders": loaders,
            "samples_per_second": round(self.samples_per_second, 1),
            "waited": round(self.waited, 3),
        }


def choose_loaders(
    asked: int | Literal["auto"],
    network: nn.Module,
    samples: Split,
    loss_of: Callable[[Batch], Tensor],
    plan: Plan,
    masks: Masks,
    most: int,
) -> ChosenLoaders:
    """What `asked` says; `auto`: twice as many, up to `most`, for as long as steps wait for batches and that makes
    training `LEAST_GAIN` times as fast. Leaves `network` as it was."""
    if asked != "auto":
        return ChosenLoaders(asked)
    began = time.monotonic()
    with trial(network, samples, loss_of, plan, masks) as take:

        def paced(loaders: int) -> _Pace:
            return _paced(take, samples, plan, loaders, device_of(network))

        best, pace, gain = 1, paced(1), 1.0
        tried = [pace.as_row(1)]
        # Were there always a batch at hand, training would be 1 / (1 - waited) times as fast.
        while 1.0 - pace.waited < 1.0 / LEAST_GAIN and 2 * best <= most:
            own, other = [], []
            for _ in range(ROUNDS):
                if time.monotonic() - began > LONGEST_SECONDS:
                    break
                own.append(paced(best))
                other.append(paced(2 * best))
            if not own:
                break
            faster = _middle(other)
            tried.append(faster.as_row(2 * best))
            own_gain = faster.samples_per_second / _middle(own).samples_per_second
            if own_gain < LEAST_GAIN:
                break
            best, pace, gain = 2 * best, faster, gain * own_gain
    return ChosenLoaders(best, tuple(tried), gain)


def _paced(take: Callable[[Batch], None], samples: Split, plan: Plan, loaders: int, device: torch.device) -> _Pace:
    """Over some steps, once those that were read while nothing else ran are behind."""
    seen, waited = 0, 0.0
    with closing(on_device(_endless(samples, plan), device, loaders)) as batches:
        for batch in itertools.islice(batches, loaders + READ_AHEAD):
            take(batch)
        began = time.perf_counter()
        for _ in range(max(LEAST_STEPS, 2 * loaders)):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            take(batch)
            seen += len(batch)
        seconds = time.perf_counter() - began
    return _Pace(seen / seconds, waited / seconds)


def _endless(samples: Split, plan: Plan) -> Iterator[Callable[[], Batch]]:
    """Shuffled batches of one size, over and over."""
    order = torch.Generator().manual_seed(plan.seed)
    size = min(plan.batch_size, len(samples))
    while True:
        yield from itertools.islice(samples.unread(size, generator=order), len(samples) // size)


def _middle(paces: list[_Pace]) -> _Pace:
    return _Pace(median(pace.samples_per_second for pace in paces), median(pace.waited for pace in paces))
