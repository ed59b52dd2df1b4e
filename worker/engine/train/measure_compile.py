"""Whether compiling pays: tried on the network itself, and set against the steps that there are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from torch import Tensor, nn

from models.errors import Code, Failure
from worker.engine.data.dataset import Batch, Split
from worker.engine.failures import as_not_running
from worker.engine.masks import Masks
from worker.engine.train.compiled import Compiled
from worker.engine.train.loop import Plan
from worker.engine.train.state import device_of
from worker.engine.train.trial import LEAST_GAIN, trial

ROUNDS = 5
"""In each, a step as it is and one through kernels, so that a busy machine slows both alike."""
LONGEST_SECONDS = 30.0
"""No round begins after so long; compiling does not count."""
SHORTEST_SECONDS = 600.0
"""What takes less as it is is not tried: compiling takes some minutes at worst, and is lost where it does not pay."""


@dataclass(frozen=True)
class ChosenCompile:
    """`samples_per_second` of steps as they are and of those through kernels, `seconds` that compiling took; or
    `why_not`, where that was not tried or failed. All None: there was nothing to choose."""

    compiled: bool
    samples_per_second: tuple[float, float] | None = None
    seconds: float | None = None
    why_not: str | None = None

    def as_details(self) -> dict[str, Any]:
        """For the report. `compile_gain`: how many times as fast steps are, where that was measured."""
        found: dict[str, Any] = {"compiled": self.compiled}
        if self.samples_per_second is not None:
            usual, own = self.samples_per_second
            measured = {"as_it_is": round(usual, 1), "compiled": round(own, 1)}
            found["compile_gain"] = round(own / usual, 3) if self.compiled else 1.0
            found["compile_measured"] = {"samples_per_second": measured, "compile_seconds": self.seconds}
        elif self.why_not is not None:
            found["compile_measured"] = {"failed": self.why_not}
        return found


def choose_compile(
    asked: bool | Literal["auto"],
    forward: Compiled,
    network: nn.Module,
    samples: Split,
    loss_of: Callable[[Batch], Tensor],
    plan: Plan,
    masks: Masks,
) -> ChosenCompile:
    """What `asked` says; `auto`: whether all steps of the training together with compiling are at least `LEAST_GAIN`
    times as fast as they are without. `loss_of` runs `forward`, which is left as it is chosen, and `network` as it was.

    Raises Failure where the network is to be compiled: UNSUPPORTED_HERE when `forward` says why not, NOT_TRAINABLE when
    it does not run then, OUT_OF_MEMORY or OUT_OF_GPU_MEMORY when it does for want of that.
    """
    if asked is False:
        return ChosenCompile(False)
    if forward.why_not is not None:
        if asked is True:
            message = f"The network cannot be compiled, as {forward.why_not}: leave `speed.compile` out."
            raise Failure(Code.UNSUPPORTED_HERE, message)
        return ChosenCompile(False, why_not=forward.why_not)
    steps = plan.epochs * math.ceil(len(samples) / plan.batch_size)
    batch = samples.sample(forward.whole, plan.seed).to(device_of(network))
    with trial(network, samples, loss_of, plan, masks) as take:

        def seconds(*, compiled: bool) -> float:
            forward.is_on = compiled
            began = time.perf_counter()
            take(batch)
            return time.perf_counter() - began

        try:
            if asked is True:
                seconds(compiled=True)
                return ChosenCompile(True)
            seconds(compiled=False)  # warms up
            if seconds(compiled=False) * steps < SHORTEST_SECONDS:
                return ChosenCompile(False, why_not=f"the steps take less than {SHORTEST_SECONDS:g} s as they are")
            with_compiling = seconds(compiled=True)
            began, usual, own = time.monotonic(), list[float](), list[float]()
            while len(own) < ROUNDS and (not own or time.monotonic() - began < LONGEST_SECONDS):
                usual.append(seconds(compiled=False))
                own.append(seconds(compiled=True))
        except RuntimeError as error:
            forward.keep(False)
            why = str(error).strip().splitlines()[0]
            if asked is True:
                message = f"The network cannot be compiled ({why}): leave `speed.compile` out."
                raise as_not_running(error, Failure(Code.NOT_TRAINABLE, message)) from error
            return ChosenCompile(False, why_not=why)
    compiling = max(0.0, with_compiling - median(own))
    pays = LEAST_GAIN * (compiling + steps * median(own)) <= steps * median(usual)
    forward.keep(pays)
    return ChosenCompile(pays, (len(batch) / median(usual), len(batch) / median(own)), round(compiling, 1))
