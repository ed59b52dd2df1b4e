"""Going on from the middle of a step of few bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from models.spec_lowbit import LowBitStep
from tests.engine.sparsify.test_rounds import _EveryBatches as EveryBatches
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.lowbit.step import run as quantize
from worker.engine.run import Run
from worker.engine.subject import StepState, Subject


def goes_on_from_every_state(
    make: Callable[[Path], Subject], begun: Callable[[Subject, Path], Run], step: LowBitStep, every: int, folder: Path
) -> dict[str, Any]:
    """Interrupt `step` every so many batches, and go on from each state it kept: to the same details, which are
    returned, and the same bytes."""
    whole, kept = make(folder), list[Path]()
    run = begun(whole, folder)

    def keep(state: StepState) -> None:
        kept.append(folder / f"{len(kept)}.safetensors")
        save_checkpoint(whole, [], kept[-1], state)

    run.keep_state, run.interrupts = keep, EveryBatches(every)
    expected = quantize(whole, step, run)
    assert len(kept) >= 2
    for path in kept:
        resumed = make(folder)
        again = begun(resumed, folder)
        _, again.state = restore_checkpoint(resumed, path)
        assert quantize(resumed, step, again) == expected
        for name, value in whole.graph.state_dict().items():
            assert torch.equal(resumed.graph.state_dict()[name], value), (path.name, name)
    return expected
