"""The one training loop.

For each epoch: go through the training samples in a new order, step against the gradient of the loss, judge the
network on the validation samples, and keep the weights if they are the best so far. The weights from before the first
epoch take part in that contest, so the result is never judged worse than the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from worker.engine.data.dataset import Batch, Split
from worker.engine.masks import Masks, mask_gradients, mask_weights
from worker.engine.subject import StepState
from worker.engine.train.state import Position, capture, copy_weights, device_of, load_weights, restore
from worker.engine.trainable import trainable

WARM_UP = 0.1
"""Share of all steps in which the learning rate rises."""
LARGEST_GRADIENT = 1.0
"""Gradients are scaled down to this norm (Pascanu et al., 2013)."""
REPORTS_PER_EPOCH = 10


@dataclass(frozen=True)
class Plan:
    """How long and how fast. `learning_rate` is the peak of the schedule."""

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Verdict:
    """The network on the validation samples: `score` (higher is better) decides, then the lower `loss`."""

    score: float
    loss: float

    def beats(self, other: Verdict) -> bool:
        return (self.score, -self.loss) > (other.score, -other.loss)


@dataclass(frozen=True)
class Epoch:
    """One line of a training log; epoch 0 is the state before training, which has no training loss."""

    epoch: int
    train_loss: float | None
    verdict: Verdict


@dataclass
class Log:
    """Every epoch so far and which was best. `cut_short`: time ran out before the last epoch ended."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    cut_short: bool = False

    def add(self, epoch: Epoch) -> bool:
        """Whether it is the best so far."""
        self.epochs.append(epoch)
        if len(self.epochs) == 1 or epoch.verdict.beats(self.epochs[self.best].verdict):
            self.best = len(self.epochs) - 1
            return True
        return False

    def as_data(self) -> dict[str, Any]:
        return {"best": self.best, "epochs": [asdict(epoch) for epoch in self.epochs]}

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Log:
        epochs = [Epoch(row["epoch"], row["train_loss"], Verdict(**row["verdict"])) for row in data["epochs"]]
        return cls(epochs, data["best"])


def train(
    network: nn.Module,
    samples: Split,
    loss_of: Callable[[Batch], Tensor],
    judge: Callable[[], Verdict],
    plan: Plan,
    *,
    on_progress: Callable[[float, int], None] = lambda fraction, epoch: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_state: Callable[[StepState], None] = lambda state: None,
    state_due: Callable[[], bool] = lambda: False,
    out_of_time: Callable[[], bool] = lambda: False,
    resume: StepState | None = None,
    masks: Masks = MappingProxyType({}),
) -> Log:
    """Train `network` in place and leave the best weights in it, in eval mode.

    `loss_of` runs the network on a batch; `judge` looks at the validation samples. `on_progress` gets the share of
    the whole run that is done, several times an epoch. After each batch `state_due` is asked: where it says so,
    `on_state` gets a state, and `resume` takes one: what follows is then bit for bit what would have followed. Once
    `out_of_time` says so the epoch ends there, is judged as any other, and is the last. On a CPU the same seed gives
    the same weights. What `masks` hold at zero stays exactly zero.
    Raises Failure: NOT_TRAINABLE when no gradient reaches a parameter, NAN_LOSS when the loss is not finite.
    """
    device = device_of(network)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), trainable(network):
        torch.manual_seed(plan.seed)
        order = torch.Generator().manual_seed(plan.seed)
        optimizer = _optimizer(network, plan)
        if resume is None:
            log = Log()
            log.add(Epoch(0, None, judge()))
            best, at = copy_weights(network), Position(1, order.get_state())
            on_epoch(log.epochs[0])
        else:
            log = Log.from_data(resume.data["log"])
            best, at = restore(resume, network, optimizer)

        def after_batch(at: Position) -> None:
            if state_due():
                on_state(capture(network, optimizer, at, best, {"log": log.as_data()}))

        while at.epoch <= plan.epochs and not log.cut_short:
            order.set_state(at.order)
            at = _one_epoch(
                network, samples, loss_of, optimizer, order, plan, at, on_progress, after_batch, out_of_time, masks
            )
            if at.samples > 0:
                line = Epoch(at.epoch, at.mean_loss(), judge())
                if log.add(line):
                    best = copy_weights(network)
                on_epoch(line)
            log.cut_short = not at.is_end
            at = Position(at.epoch + 1, order.get_state())

        load_weights(network, best)
    return log


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """One cycle over `steps` steps (Smith and Topin, 2017): a linear rise over the first tenth, then a cosine to 0."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _one_epoch(
    network: nn.Module,
    samples: Split,
    loss_of: Callable[[Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    order: torch.Generator,
    plan: Plan,
    start: Position,
    on_progress: Callable[[float, int], None],
    after_batch: Callable[[Position], None],
    out_of_time: Callable[[], bool],
    masks: Masks,
) -> Position:
    """Train from `start` to the end of its epoch, or until `out_of_time`; where it stopped comes back."""
    device = device_of(network)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    steps = math.ceil(len(samples) / plan.batch_size)
    _train_mode(network, alone=min(plan.batch_size, len(samples)) == 1)
    total = start.loss_sum.to(device, copy=True)
    seen, epoch = start.samples, start.epoch
    for step, batch in enumerate(samples.batches(plan.batch_size, generator=order, first=start.batches), start.batches):
        if out_of_time():
            return Position(epoch, start.order, step, seen, total, is_end=False)
        if len(batch) == 1 and steps > 1 and plan.batch_size > 1:
            continue  # BatchNorm cannot normalise a single sample; another one is left over in the next epoch.
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at((epoch - 1) * steps + step, plan.epochs * steps, plan.learning_rate)
        loss = loss_of(batch.to(device))
        if not loss.requires_grad:
            raise Failure(Code.NOT_TRAINABLE, "No gradient reaches the network's parameters from the loss.")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        mask_gradients(network, masks)
        nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
        optimizer.step()
        mask_weights(network, masks)
        total += loss.detach() * len(batch)
        seen += len(batch)
        if step % max(1, steps // REPORTS_PER_EPOCH) == 0 or step == steps - 1:
            _require_finite(total, epoch, step + 1)
            on_progress((epoch - 1 + (step + 1) / steps) / plan.epochs, epoch)
        after_batch(Position(epoch, start.order, step + 1, seen, total))
    _require_finite(total, epoch, steps)
    return Position(epoch, start.order, steps, seen, total)


def _optimizer(network: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    """AdamW; vectors and scalars (biases, norms) do not decay."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise Failure(Code.NOT_TRAINABLE, "The network has no floating-point parameters, so nothing can be trained.")
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": plan.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=plan.learning_rate,
    )


def _train_mode(network: nn.Module, *, alone: bool) -> None:
    """Training mode. `alone`: batches have one sample, so BatchNorm keeps using its running statistics."""
    network.train()
    if alone:
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
