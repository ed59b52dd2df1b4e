"""How long a network takes in the runtime that people will run it in, while a step still decides what it becomes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from torch import Tensor, fx

from models.report import Latency
from models.spec import ExportFormat
from worker.engine.export.external import written
from worker.engine.measure.runtime import FreshProcess
from worker.engine.run import Run
from worker.engine.subject import Subject

Export = Callable[[fx.GraphModule, Subject, Path], None]


class Stopwatch:
    """Writes a network to a file of `form` and runs it in turn with the original's, one sample a call, as the report
    does. A context: the process that runs them starts with the first network and ends with the block."""

    def __init__(self, subject: Subject, run: Run, threads: int, form: ExportFormat, export: Export) -> None:
        self._subject, self._run, self._threads = subject, run, threads
        self._form, self._export = form, export
        self._open = ExitStack()
        self._process: FreshProcess | None = None

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def __call__(self, graph: fx.GraphModule) -> tuple[Latency, Latency]:
        """Of `graph`, which is left as it is, and of the original. Raises Failure: UNSUPPORTED_HERE when it cannot be
        exported, VERIFICATION_FAILED when the runtime refuses the file."""
        if self._process is None:
            self._folder = Path(self._open.enter_context(TemporaryDirectory(prefix="timing-", dir=self._run.folder)))
            self._write(self._subject.original, "original")
            self._process = self._open.enter_context(FreshProcess(self._run.folder, self._threads))
        candidate = self._write(graph, "candidate")
        first, second = self._process.latency([candidate, written(self._path("original"))], self._sample())
        return first, second

    def _write(self, graph: fx.GraphModule, name: str) -> Path:
        self._export(copy.deepcopy(graph).cpu(), self._subject, self._path(name))
        return written(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.{self._form}"

    def _sample(self) -> tuple[Tensor, ...]:
        if self._run.data is not None:
            return self._run.data.val.sample(1, self._run.spec.seed).inputs
        return self._subject.example_inputs(1)
