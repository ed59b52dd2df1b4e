"""A learning rate for a network, by trying them from far too small to far too large (Smith, 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec_optimizer import USUAL_RATES
from worker.engine.data.dataset import Batch, Split
from worker.engine.masks import Masks
from worker.engine.team import ALONE, Team
from worker.engine.train.loop import Plan, ready, train_mode
from worker.engine.train.state import copy_weights, device_of, load_weights
from worker.engine.train.stepper import Stepper, optimizer_for

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
SMOOTHING = 0.9
"""Of the losses: each mean keeps so much of the one before; the first loss begins it."""
TOO_LARGE = 4.0
"""The test ends where the smoothed loss is so many times the lowest."""
BELOW_THE_LOWEST = 10.0
"""The rate with the lowest smoothed loss is on the edge: the one that is taken is so many times smaller."""
LEAST_GAIN = 0.98
"""A lowest loss above this share of the first says nothing about rates."""


@dataclass(frozen=True)
class RangeTest:
    """`chosen` is the peak to train with; `tried` the rates and smoothed losses. `found` is False where no rate made
    the loss fall, so that the usual rate was taken."""

    chosen: float
    found: bool
    tried: tuple[tuple[float, float], ...]

    def as_details(self) -> dict[str, Any]:
        return {"found": self.found, "tried": [{"rate": rate, "loss": loss} for rate, loss in self.tried]}


def range_test(
    network: nn.Module,
    samples: Split,
    loss_of: Callable[[Batch], Tensor],
    plan: Plan,
    masks: Masks,
    team: Team = ALONE,
) -> RangeTest:
    """Train for up to `STEPS` batches while the rate rises from `LOWEST` to `HIGHEST`, each by the same factor, and
    leave `network` as it was. The same seed gives the same rate on a CPU.

    Raises Failure: NOT_TRAINABLE as training does, NAN_LOSS when the loss is not finite to begin with.
    """
    before = copy_weights(network)
    tried: list[tuple[float, float]] = []
    mean = lowest = math.inf
    with ready(network, plan):
        optimizer = optimizer_for(network, plan.optimizer, plan.weight_decay)
        scaler = plan.numerics.scaler(device_of(network))
        stepper = Stepper(
            network,
            loss_of,
            optimizer,
            STEPS,
            _rate,
            plan.clip_norm,
            masks,
            numerics=plan.numerics,
            scaler=scaler,
            team=team,
            seed=plan.seed,
        )
        train_mode(network, samples, plan)
        for step, batch in enumerate(_batches(samples, plan, team)):
            loss = float(stepper.take(batch.to(device_of(network)), step))
            if not math.isfinite(loss):
                break
            mean = loss if not tried else SMOOTHING * mean + (1 - SMOOTHING) * loss
            tried.append((_rate(step), mean))
            lowest = min(lowest, mean)
            if mean > TOO_LARGE * lowest:
                break
        load_weights(network, before)
    if not tried:
        raise Failure(Code.NAN_LOSS, "The loss is NaN or infinite before any training.")
    return _choice(tried, USUAL_RATES[plan.optimizer.name])


def _choice(tried: list[tuple[float, float]], usual: float) -> RangeTest:
    rate, lowest = min(tried, key=lambda row: row[1])
    if lowest > LEAST_GAIN * tried[0][1]:
        return RangeTest(usual, False, tuple(tried))
    return RangeTest(float(f"{rate / BELOW_THE_LOWEST:.3g}"), True, tuple(tried))


def _rate(step: int) -> float:
    return LOWEST * math.exp(step / (STEPS - 1) * math.log(HIGHEST / LOWEST))


def _batches(samples: Split, plan: Plan, team: Team) -> Iterator[Batch]:
    """`STEPS` shuffled batches, over and over where there are fewer, without a single left-over sample."""
    order, given = torch.Generator().manual_seed(plan.seed), 0
    while given < STEPS:
        for batch in samples.batches(plan.batch_size, generator=order, team=team):
            if given == STEPS:
                return
            if batch.whole().whole > 1 or min(plan.batch_size, len(samples)) == 1:
                given += 1
                yield batch
