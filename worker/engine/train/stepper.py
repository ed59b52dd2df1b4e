"""One step of training: the loss of a batch, its gradient, and what moves the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec_optimizer import AdamW, RateSchedule, Sgd
from models.spec_speed import Augment
from worker.engine.data.dataset import Batch
from worker.engine.masks import Masks, mask_gradients, mask_weights
from worker.engine.team import ALONE, Team
from worker.engine.train.augment import augmented
from worker.engine.train.average import Average
from worker.engine.train.numerics import USUAL, Numerics
from worker.engine.train.rates import learning_rate_at


class Penalty(Protocol):
    """Draws weights to zero: as a part of the gradient, or apart from it after the step."""

    def add_gradient(self) -> None:
        """Add its gradient to that of the loss, which is clipped already."""

    def shrink(self, rate: float, done: float) -> None:
        """After a step at the learning rate `rate`; `done` is the share of the training that lies behind (0 to 1)."""


@dataclass(frozen=True)
class Stepper:
    """The parts of a step. `steps` is how many the whole training has; `rate` gives the learning rate of one. `loss_of`
    gives this process's part of a mean, of which `team` makes the sum."""

    network: nn.Module
    loss_of: Callable[[Batch], Tensor]
    optimizer: torch.optim.Optimizer
    steps: int
    rate: Callable[[int], float]
    clip_norm: float | None
    masks: Masks
    penalty: Penalty | None = None
    average: Average | None = None
    numerics: Numerics = USUAL
    scaler: torch.amp.GradScaler | None = None
    augment: Augment | None = None
    team: Team = ALONE
    seed: int = 0

    def take(self, batch: Batch, step: int) -> Tensor:
        """The loss of the whole of `batch` before this step. Raises Failure(NOT_TRAINABLE) when it has no gradient."""
        rate = self.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.augment is not None:
            batch = augmented(batch, self.augment)
        self.optimizer.zero_grad()
        device = batch.inputs[0].device
        with self.team.computing(batch.whole(), self.seed + step, device):
            with self.numerics.autocast(device):
                loss = self.loss_of(self.numerics.laid_out(batch))
            if not loss.requires_grad:
                raise Failure(Code.NOT_TRAINABLE, "No gradient reaches the network's parameters from the loss.")
            torch.autograd.backward(loss if self.scaler is None else self.scaler.scale(loss))
        loss = loss.detach()
        gradients = [parameter.grad for parameter in trained(self.network) if parameter.grad is not None]
        self.team.add_up_step(gradients, loss)
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        mask_gradients(self.network, self.masks)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained(self.network), self.clip_norm)
        if self.penalty is not None:
            self.penalty.add_gradient()
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)  # not where a gradient left float16: then the scale shrinks
            self.scaler.update()
        if self.penalty is not None:
            self.penalty.shrink(rate, step / self.steps)
        mask_weights(self.network, self.masks)
        if self.average is not None:
            self.average.add(step)
        return loss


def scheduled(steps: int, peak: float, schedule: RateSchedule, warm_up: float) -> Callable[[int], float]:
    return lambda step: learning_rate_at(step, steps, peak, schedule, warm_up)


def optimizer_for(network: nn.Module, chosen: AdamW | Sgd, weight_decay: float) -> torch.optim.Optimizer:
    """Vectors and scalars (biases, scales) do not decay. Raises Failure(NOT_TRAINABLE) when nothing can be trained."""
    parameters = trained(network)
    if not parameters:
        raise Failure(Code.NOT_TRAINABLE, "The network has no floating-point parameters, so nothing can be trained.")
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if isinstance(chosen, Sgd):
        return torch.optim.SGD(groups, lr=1.0, momentum=chosen.momentum, nesterov=chosen.nesterov)
    return torch.optim.AdamW(groups, lr=1.0, betas=(chosen.beta1, chosen.beta2))


def trained(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
