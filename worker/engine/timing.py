"""How long a network takes in the runtime that people will run it in, while a step still decides what it becomes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, fx

from models.report import Latency
from models.spec import ExportFormat
from worker.engine.measure.runtime import FreshProcess
from worker.engine.run import Run
from worker.engine.subject import Subject

Export = Callable[[fx.GraphModule, Subject, Path], None]


class Stopwatch:
    """Writes a network to a file of `form` and runs it in turn with the original's, one sample a call, as the report
    does. The original's file is written once."""

    def __init__(self, subject: Subject, run: Run, threads: int, form: ExportFormat, export: Export) -> None:
        self._subject, self._run, self._threads = subject, run, threads
        self._form, self._export = form, export
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, graph: fx.GraphModule) -> tuple[Latency, Latency]:
        """Of `graph`, which is left as it is, and of the original. Raises Failure: UNSUPPORTED_HERE when it cannot be
        exported, VERIFICATION_FAILED when the runtime refuses the file."""
        original = self._original()
        candidate = original.with_name(f"candidate.{self._form}")
        self._export(copy.deepcopy(graph).cpu(), self._subject, candidate)
        with FreshProcess(self._run.folder, self._threads) as process:
            first, second = process.latency([candidate, original], self._sample())
        return first, second

    def _original(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="timing-", dir=self._run.folder)
            path = Path(self._folder.name) / f"original.{self._form}"
            self._export(copy.deepcopy(self._subject.original).cpu(), self._subject, path)
        return Path(self._folder.name) / f"original.{self._form}"

    def _sample(self) -> tuple[Tensor, ...]:
        if self._run.data is not None:
            return self._run.data.val.sample(1, self._run.spec.seed).inputs
        return self._subject.example_inputs(1)
