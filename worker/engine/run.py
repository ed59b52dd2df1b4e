"""One run of the engine: where it writes, what it says, what it may use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from models.events import EngineEvent, MetricEvent, PhaseEvent, ProgressEvent, WarningEvent
from models.inspection import Notice
from models.report import Latency
from models.spec import FinetuneStep, Spec
from models.statuses import Phase
from worker.engine.interrupts import Interrupts
from worker.engine.subject import StepState, Subject
from worker.engine.team import Team

if TYPE_CHECKING:
    from worker.engine.data.dataset import Dataset


_BEAT_SECONDS = 10.0


@dataclass
class Run:
    """Handed to every step. `emit` sends one event; `folder` is the only place to write.

    `shares` says how the work divides: (start, width) in percent of the part that runs now.
    `keep_state` takes the state inside a step; `state` is the one to go on from, where there is one.
    `cut_short` says, once the time is up, what was left undone.
    `teachers` are the networks beside the original to learn from, by id.
    `gather` brings the processes together that train; without it one trains alone.
    `train` is the finetune step, for steps that train in between; `latency` exports a network and measures it and the
    original side by side.
    """

    spec: Spec
    folder: Path
    emit: Callable[[EngineEvent], None]
    device: torch.device
    data: Dataset | None = None
    teachers: Mapping[str, fx.GraphModule] = field(default_factory=dict)
    step_index: int | None = None
    interrupts: Interrupts = field(default_factory=Interrupts)
    state: StepState | None = None
    keep_state: Callable[[StepState], None] = lambda state: None
    cut_short: str | None = None
    gather: Callable[[Subject, FinetuneStep, Run], AbstractContextManager[Team]] | None = None
    train: Callable[[Subject, FinetuneStep, Run], dict[str, Any]] | None = None
    latency: Callable[[fx.GraphModule], tuple[Latency, Latency]] | None = None
    warnings: list[Notice] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _share: tuple[float, float] = (0.0, 100.0)
    _percent: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    @property
    def step_count(self) -> int:
        return len(self.spec.steps or [])

    def phase(self, phase: Phase) -> None:
        self.emit(PhaseEvent(phase=phase, step_index=self.step_index, step_count=self.step_count))

    def share(self, start: float, width: float) -> None:
        """From now on `progress` fills the part of the bar from `start` to `start + width` percent."""
        self._share = (start, width)
        self.progress(0.0)

    @contextmanager
    def part(self, start: float, width: float) -> Iterator[None]:
        """Inside the block `progress` fills the part of the current part from `start`, `width` wide (both 0 to 1)."""
        whole = self._share
        self.share(whole[0] + whole[1] * start, whole[1] * width)
        yield
        self._share = whole

    def progress(self, fraction: float, epoch: int | None = None, epochs: int | None = None) -> None:
        """Say that `fraction` (0 to 1) of the current part is done."""
        start, width = self._share
        self._percent = max(self._percent, min(100.0, start + width * fraction))
        elapsed = time.monotonic() - self._started
        eta = elapsed * (100.0 - self._percent) / self._percent if self._percent >= 10 else None
        self.emit(ProgressEvent(percent=round(self._percent, 2), epoch=epoch, epochs=epochs, eta_seconds=eta))

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Around one call that may take long and says nothing: meanwhile a thread says that the engine is alive."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(_BEAT_SECONDS):
                self.progress(0.0)

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep how many seconds the block took, for the report."""
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 3)

    def metric(self, event: MetricEvent) -> None:
        self.emit(event)

    def warn(self, code: str, message: str) -> None:
        """A warning is shown live and kept for the report."""
        notice = Notice(code=code, message=message)
        self.warnings.append(notice)
        self.emit(WarningEvent(notice=notice))
