"""How fast steps are in one precision and layout or another: tried on the network itself, which is put back after."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec_speed import Precision, Speed
from worker.engine.data.dataset import Batch, Split
from worker.engine.failures import as_not_running
from worker.engine.masks import Masks
from worker.engine.train.loop import Plan
from worker.engine.train.numerics import USUAL, Numerics
from worker.engine.train.state import device_of
from worker.engine.train.trial import LEAST_GAIN, trial

ROUNDS = 5
"""In each, every choice takes a step in turn, so that a busy machine slows all alike."""
LONGEST_SECONDS = 30.0
"""No round begins after so long."""


@dataclass(frozen=True)
class Chosen:
    """`numerics` are those to train with; `tried` has the samples a second of every choice, the usual one first, or why
    it does not run. Empty: there was nothing to choose."""

    numerics: Numerics
    tried: tuple[dict[str, Any], ...] = ()

    def as_details(self) -> dict[str, Any]:
        """For the report. `gain`: how many times as fast as the usual choice, where that was measured."""
        found: dict[str, Any] = asdict(self.numerics)
        speeds = {row["choice"]: row["samples_per_second"] for row in self.tried}
        if speeds:
            usual, own = self.tried[0]["samples_per_second"], speeds[str(self.numerics)]
            found |= {"gain": round(own / usual, 3), "measured": list(self.tried)}
        return found


def choose_numerics(
    asked: Speed, network: nn.Module, samples: Split, loss_of: Callable[[Batch], Tensor], plan: Plan, masks: Masks
) -> Chosen:
    """What `asked` says, with what it leaves to `auto` measured on a few steps. Leaves `network` as it was.

    Raises Failure where the network does not run in what is asked for: NOT_TRAINABLE, or what memory it lacks.
    """
    device = device_of(network)
    candidates = _candidates(asked, device, images=any(value.dim() == 4 for value in samples.sample(1, 0).inputs))
    if candidates == [USUAL]:
        return Chosen(USUAL)
    batch = samples.sample(plan.batch_size, plan.seed).to(device)
    if len(candidates) == 1:
        _require_running(network, batch, samples, loss_of, replace(plan, numerics=candidates[0]), masks)
        return Chosen(candidates[0])
    seconds: list[list[float]] = [[] for _ in candidates]
    reasons: dict[int, str] = {}
    began = time.monotonic()
    for number in range(ROUNDS + 1):  # The first warms up.
        if number > 1 and time.monotonic() - began > LONGEST_SECONDS:
            break
        for place, numerics in enumerate(candidates):
            if place in reasons:
                continue
            try:
                taken = _step_seconds(network, batch, samples, loss_of, replace(plan, numerics=numerics), masks)
            except RuntimeError as error:  # A view that only one layout has, a kernel that a precision lacks.
                if place == 0:
                    raise _not_running(numerics, error) from error
                reasons[place] = str(error).splitlines()[0]
            else:
                seconds[place] += [taken] if number else []
    speeds = [
        len(batch) / median(taken) if taken and place not in reasons else 0.0 for place, taken in enumerate(seconds)
    ]
    best = max(range(len(candidates)), key=lambda place: speeds[place])
    if speeds[best] < LEAST_GAIN * speeds[0]:
        best = 0
    rows = [
        {"choice": str(numerics), "samples_per_second": round(speeds[place], 1) or None, "failed": reasons.get(place)}
        for place, numerics in enumerate(candidates)
    ]
    return Chosen(candidates[best], tuple(rows))


def _require_running(
    network: nn.Module, batch: Batch, samples: Split, loss_of: Callable[[Batch], Tensor], plan: Plan, masks: Masks
) -> None:
    try:
        _step_seconds(network, batch, samples, loss_of, plan, masks)
    except RuntimeError as error:
        raise _not_running(plan.numerics, error) from error


def _not_running(numerics: Numerics, error: RuntimeError) -> Failure:
    why = str(error).splitlines()[0]
    message = f"The network cannot be trained with {numerics} ({why}): ask for less in `speed`."
    return as_not_running(error, Failure(Code.NOT_TRAINABLE, message))


def _candidates(asked: Speed, device: torch.device, *, images: bool) -> Sequence[Numerics]:
    """The usual choice first. What a device does not have is not tried."""
    cuda = device.type == "cuda"
    if not cuda:
        kept = {"precision": "float32"} if asked.precision == "tf32" else {}
        asked = asked.model_copy(update={**kept, "cudnn_autotune": False})
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    if cuda:
        precisions = ("float32", "tf32", "bfloat16" if torch.cuda.is_bf16_supported() else "float16")
    return [
        Numerics(*choice)
        for choice in itertools.product(
            precisions if asked.precision == "auto" else (asked.precision,),
            _either(asked.channels_last, images),
            _either(asked.cudnn_autotune, cuda),
        )
    ]


def _either(asked: bool | str, possible: bool) -> tuple[bool, ...]:
    if isinstance(asked, bool):
        return (asked,)
    return (False, True) if possible else (False,)


def _step_seconds(
    network: nn.Module, batch: Batch, samples: Split, loss_of: Callable[[Batch], Tensor], plan: Plan, masks: Masks
) -> float:
    with trial(network, samples, loss_of, plan, masks) as take:
        began = time.perf_counter()
        take(batch)
        return time.perf_counter() - began
