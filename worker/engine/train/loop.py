"""The one training loop.

For each epoch: go through the training samples in a new order, step against the gradient of the loss, judge the
network on the validation samples, and keep the weights if they are the best so far. The weights from before the first
epoch take part in that contest, so the result is never judged worse than the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec_optimizer import USUAL_WARM_UP, AdamW, RateSchedule, Sgd
from models.spec_speed import Augment
from worker.engine.data.dataset import Batch, Split
from worker.engine.masks import Masks
from worker.engine.subject import StepState
from worker.engine.team import ALONE, Team
from worker.engine.train.average import Average
from worker.engine.train.feed import on_device
from worker.engine.train.numerics import USUAL, Numerics
from worker.engine.train.state import Position, capture, copy_weights, device_of, load_weights, restore
from worker.engine.train.stepper import Penalty, Stepper, optimizer_for, scheduled
from worker.engine.trainable import trainable

REPORTS_PER_EPOCH = 10


@dataclass(frozen=True)
class Plan:
    """How long and how fast. `learning_rate` is the peak of `rate_schedule`; gradients are scaled down to `clip_norm`;
    `average` is the decay of the weights' moving average; `patience` counts epochs without a better one; so many
    threads as `loaders` read batches; the rest is as in `models/spec_train.py`."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int
    optimizer: AdamW | Sgd = field(default_factory=AdamW)
    rate_schedule: RateSchedule = "one_cycle"
    warm_up: float = USUAL_WARM_UP
    clip_norm: float | None = 1.0
    average: float | None = None
    patience: int | None = None
    keep: Literal["best", "last"] = "best"
    freeze_batch_norm: bool = False
    numerics: Numerics = USUAL
    loaders: int = 1
    augment: Augment | None = None


@dataclass(frozen=True)
class Verdict:
    """The network on the validation samples: `score` (higher is better) decides, then the lower `loss`."""

    score: float
    loss: float

    def beats(self, other: Verdict) -> bool:
        return (self.score, -self.loss) > (other.score, -other.loss)


@dataclass(frozen=True)
class Epoch:
    """One line of a training log; epoch 0 is the state before training, which has no training loss. `averaged`: the
    verdict is of the average of the weights, which was the better one."""

    epoch: int
    train_loss: float | None
    verdict: Verdict
    averaged: bool = False


@dataclass
class Log:
    """Every epoch so far and which is kept: the best, or the last. `cut_short`: time ran out before the last epoch
    ended."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    cut_short: bool = False
    keep: Literal["best", "last"] = "best"

    def add(self, epoch: Epoch) -> bool:
        """Whether it is the one to keep so far."""
        self.epochs.append(epoch)
        if len(self.epochs) == 1 or self.keep == "last" or epoch.verdict.beats(self.epochs[self.best].verdict):
            self.best = len(self.epochs) - 1
            return True
        return False

    def is_over(self, plan: Plan) -> bool:
        """Whether the last epoch was the last there will be."""
        return (
            self.cut_short
            or self.epochs[-1].epoch >= plan.epochs
            or (plan.patience is not None and len(self.epochs) - 1 - self.best >= plan.patience)
        )

    def as_data(self) -> dict[str, Any]:
        return {"best": self.best, "epochs": [asdict(epoch) for epoch in self.epochs]}

    @classmethod
    def from_data(cls, data: dict[str, Any], keep: Literal["best", "last"]) -> Log:
        epochs = [Epoch(**row | {"verdict": Verdict(**row["verdict"])}) for row in data["epochs"]]
        return cls(epochs, data["best"], keep=keep)


def train(
    network: nn.Module,
    samples: Split,
    loss_of: Callable[[Batch], Tensor],
    judge: Callable[[], Verdict],
    plan: Plan,
    *,
    penalty: Penalty | None = None,
    on_progress: Callable[[float, int], None] = lambda fraction, epoch: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_state: Callable[[StepState], None] = lambda state: None,
    state_due: Callable[[], bool] = lambda: False,
    out_of_time: Callable[[], bool] = lambda: False,
    resume: StepState | None = None,
    masks: Masks = MappingProxyType({}),
    team: Team = ALONE,
) -> Log:
    """Train `network` in place and leave the best weights in it (the last, if the plan says so), in eval mode.

    `loss_of` runs the network on a batch; `judge` looks at the validation samples; `penalty` draws weights to zero
    after each step. `on_progress` gets the share of the whole run that is done, several times an epoch. After each
    batch `state_due` is asked: where it says so, `on_state` gets a state, and `resume` takes one: what follows is then
    bit for bit what would have followed. Once `out_of_time` says so the epoch ends there, is judged as any other, and
    is the last. On a CPU the same seed gives the same weights. What `masks` hold at zero stays exactly zero.
    `team` are the processes that train together, all of which call this; `judge` and `out_of_time` then say the same in
    each, and `loss_of` gives a part of the loss.
    Raises Failure: NOT_TRAINABLE when no gradient reaches a parameter, NAN_LOSS when the loss is not finite.
    """
    steps_per_epoch = math.ceil(len(samples) / plan.batch_size)
    steps = plan.epochs * steps_per_epoch
    with ready(network, plan):
        order = torch.Generator().manual_seed(plan.seed)
        optimizer = optimizer_for(network, plan.optimizer, plan.weight_decay)
        if resume is None:
            log, at = Log(keep=plan.keep), Position(1, order.get_state())
            log.add(Epoch(0, None, judge()))
            best, averages = copy_weights(network), None
            on_epoch(log.epochs[0])
        else:
            log = Log.from_data(resume.data["log"], plan.keep)
            best, averages, at = restore(resume, network, optimizer)
        scaler = plan.numerics.scaler(device_of(network))
        if scaler is not None and resume is not None:
            scaler.load_state_dict(resume.data["scaler"])
        average = None if plan.average is None else Average(network, plan.average, averages)
        rate = scheduled(steps, plan.learning_rate, plan.rate_schedule, plan.warm_up)
        stepper = Stepper(
            network,
            loss_of,
            optimizer,
            steps,
            rate,
            plan.clip_norm,
            masks,
            penalty,
            average,
            plan.numerics,
            scaler,
            plan.augment,
            team,
            plan.seed,
        )

        kept: int | None = None

        def after_batch(at: Position) -> None:
            nonlocal kept
            done = (at.epoch - 1) * steps_per_epoch + at.batches
            if state_due() and done != kept:
                kept = done
                averages = None if average is None else average.values
                data = {"log": log.as_data(), "scaler": None if scaler is None else scaler.state_dict()}
                on_state(capture(network, optimizer, at, best, averages, data))

        while not log.is_over(plan):
            order.set_state(at.order)
            train_mode(network, samples, plan)
            at = _one_epoch(stepper, samples, order, plan, at, on_progress, after_batch, out_of_time)
            if at.samples > 0:
                line = _judged(at, judge, average)
                if log.add(line):
                    best = copy_weights(network) if average is None or not line.averaged else average.copy()
                on_epoch(line)
            log.cut_short = not at.is_end
            at = Position(at.epoch + 1, order.get_state())

        load_weights(network, best)
    return log


def _one_epoch(
    stepper: Stepper,
    samples: Split,
    order: torch.Generator,
    plan: Plan,
    start: Position,
    on_progress: Callable[[float, int], None],
    after_batch: Callable[[Position], None],
    out_of_time: Callable[[], bool],
) -> Position:
    """Train from `start` to the end of its epoch, or until `out_of_time`; where it stopped comes back."""
    device = device_of(stepper.network)
    steps = math.ceil(len(samples) / plan.batch_size)
    total = start.loss_sum.to(device, copy=True)
    seen, epoch = start.samples, start.epoch
    unread = samples.unread(plan.batch_size, generator=order, first=start.batches, team=stepper.team)
    for step, batch in enumerate(on_device(unread, device, plan.loaders), start.batches):
        if out_of_time():
            after_batch(Position(epoch, start.order, step, seen, total))
            return Position(epoch, start.order, step, seen, total, is_end=False)
        count = batch.whole().whole
        if count == 1 and steps > 1 and plan.batch_size > 1:
            continue  # BatchNorm cannot normalise a single sample; another one is left over in the next epoch.
        total += stepper.take(batch, (epoch - 1) * steps + step) * count
        seen += count
        if step % max(1, steps // REPORTS_PER_EPOCH) == 0 or step == steps - 1:
            _require_finite(total, epoch, step + 1)
            on_progress((epoch - 1 + (step + 1) / steps) / plan.epochs, epoch)
        after_batch(Position(epoch, start.order, step + 1, seen, total))
    _require_finite(total, epoch, steps)
    return Position(epoch, start.order, steps, seen, total)


def _judged(at: Position, judge: Callable[[], Verdict], average: Average | None) -> Epoch:
    """The epoch that ended at `at`, with the better of two verdicts where there is an average of the weights."""
    own = judge()
    if average is not None:
        with average.in_place():
            other = judge()
        if other.beats(own):
            return Epoch(at.epoch, at.mean_loss(), other, averaged=True)
    return Epoch(at.epoch, at.mean_loss(), own)


@contextmanager
def ready(network: nn.Module, plan: Plan) -> Iterator[None]:
    """Gradients on, numerics in force, random numbers by the plan's seed; as before, and in eval mode, afterwards."""
    device = device_of(network)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), trainable(network), plan.numerics.in_force(network):
        torch.manual_seed(plan.seed)
        yield


def train_mode(network: nn.Module, samples: Split, plan: Plan) -> None:
    """BatchNorm keeps using its running statistics where the plan says so, and where batches have one sample."""
    network.train()
    if plan.freeze_batch_norm or min(plan.batch_size, len(samples)) == 1:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _require_finite(total: Tensor, epoch: int, step: int) -> None:
    if not bool(torch.isfinite(total)):
        raise Failure(
            Code.NAN_LOSS,
            f"The loss became NaN or infinite in epoch {epoch}, by step {step}; lower the learning rate.",
            where=f"epoch {epoch}",
        )
