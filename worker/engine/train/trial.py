"""Steps that are taken to see how long they take, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worker.engine.data.dataset import Batch, Split
from worker.engine.masks import Masks
from worker.engine.train.loop import Plan, ready, train_mode
from worker.engine.train.state import copy_weights, device_of, load_weights
from worker.engine.train.stepper import Stepper, optimizer_for

LEAST_GAIN = 1.05
"""A choice that is no faster than this is not worth another rounding, another thread."""


@contextmanager
def trial(
    network: nn.Module, samples: Split, loss_of: Callable[[Batch], Tensor], plan: Plan, masks: Masks
) -> Iterator[Callable[[Batch], None]]:
    """Inside the block a batch can be trained on as `plan` says: the call comes back when its step is done. After it
    `network` is as it was."""
    before, device = copy_weights(network), device_of(network)
    try:
        with ready(network, plan):
            train_mode(network, samples, plan)
            optimizer = optimizer_for(network, plan.optimizer, plan.weight_decay)
            scaler = plan.numerics.scaler(device)
            rate = plan.learning_rate or 1e-6
            stepper = Stepper(
                network,
                loss_of,
                optimizer,
                1,
                lambda step: rate,
                plan.clip_norm,
                masks,
                numerics=plan.numerics,
                scaler=scaler,
            )

            def take(batch: Batch) -> None:
                stepper.take(batch, 0)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)

            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield take
    finally:
        load_weights(network, before)
