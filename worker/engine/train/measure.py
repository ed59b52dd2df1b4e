"""What `auto` in `speed` comes to: measured on the network and the data themselves, one choice after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from models.spec_speed import Speed
from worker.engine.data.dataset import Batch, Split
from worker.engine.masks import Masks
from worker.engine.train.compiled import Compiled
from worker.engine.train.loop import Plan
from worker.engine.train.measure_compile import choose_compile
from worker.engine.train.measure_loaders import choose_loaders
from worker.engine.train.measure_numerics import choose_numerics


def choose_speed(
    asked: Speed,
    network: nn.Module,
    samples: Split,
    loss_of: Callable[[Batch], Tensor],
    plan: Plan,
    masks: Masks,
    forward: Compiled,
    most_loaders: int,
) -> dict[str, Any]:
    """What `asked` says with nothing left to measure, and what was measured, for the report. Leaves `network` as it
    was.

    `loss_of` runs `forward`, which is left as it is chosen.
    Raises Failure: NOT_TRAINABLE where the network does not run in what is asked for, UNSUPPORTED_HERE where it is to
    be compiled and cannot be.
    """
    numerics = choose_numerics(asked, network, samples, loss_of, plan, masks)
    plan = replace(plan, numerics=numerics.numerics)
    compiled = choose_compile(asked.compile, forward, network, samples, loss_of, plan, masks)
    loaders = choose_loaders(asked.loaders, network, samples, loss_of, plan, masks, most_loaders)
    return numerics.as_details() | compiled.as_details() | loaders.as_details()
