"""The engine's side of the fresh process: what a finished file computes, how fast, in how much memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import Code, Failure
from models.report import Latency
from worker.engine.measure.machine import instruction_set, load_average, usable_cpus

_SAMPLES = 50
_SECONDS = 6.0
"""A latency measurement ends at whichever comes first, but has at least ten samples of each file."""


class FreshProcess:
    """A context with one process of `session.py`; temporary files go to `folder` and are gone at the end.

    Every method raises `Failure(VERIFICATION_FAILED)` when the runtime refuses the file or the process dies.
    """

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._threads = threads
        self._scratch = tempfile.TemporaryDirectory(prefix="session-", dir=folder)
        environment = dict(os.environ) | {"OMP_NUM_THREADS": str(threads), "TMPDIR": self._scratch.name}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "worker.engine.measure.session"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()
        self._scratch.cleanup()

    def run(self, path: Path, inputs: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], str]:
        """The outputs for one batch, and the runtime's name and version."""
        outputs = self._path("outputs.safetensors")
        runtime = self._ask("run", path=str(path), inputs=self._write(inputs), outputs=str(outputs))
        tensors = load_file(outputs)
        return tuple(tensors[str(index)] for index in range(len(tensors))), runtime

    def latency(self, paths: Sequence[Path], inputs: Sequence[Tensor]) -> list[Latency]:
        """Latency of each file for one batch; the files take turns, so that load on the machine hits all alike."""
        loads = [load_average()]
        rows = self._ask(
            "latency",
            paths=[str(path) for path in paths],
            inputs=self._write(inputs),
            samples=_SAMPLES,
            seconds=_SECONDS,
        )
        loads.append(load_average())
        load = max((load for load in loads if load is not None), default=None)
        return [self._latency(row["runtime"], row["milliseconds"], len(inputs[0]), load) for row in rows]

    def peak_memory_bytes(self, path: Path, inputs: Sequence[Tensor]) -> int:
        """By how much opening the file and running one batch raises the peak of a process (Linux VmHWM) that has run a
        trivial network before; ask before anything else."""
        return int(self._ask("memory", path=str(path), inputs=self._write(inputs)))

    def digests(self, path: Path) -> dict[str, str]:
        """The SHA-256 of each weight's bytes, by its name, once torch has loaded the file."""
        result: dict[str, str] = self._ask("digests", path=str(path))
        return result

    def census(self, path: Path) -> dict[str, Any]:
        """`operators` and `float_on_integers` of the graph that ONNX Runtime runs."""
        result: dict[str, Any] = self._ask("census", path=str(path), optimized=str(self._path("optimized.onnx")))
        return result

    def _latency(self, runtime: str, milliseconds: list[float], batch: int, load: float | None) -> Latency:
        return Latency(
            p50=round(_percentile(milliseconds, 0.5), 4),
            p95=round(_percentile(milliseconds, 0.95), 4),
            samples=len(milliseconds),
            runtime=runtime,
            device="cpu",
            batch=batch,
            threads=self._threads,
            isa=instruction_set(),
            quantiles=[round(_percentile(milliseconds, share / 20), 4) for share in range(21)],
            load_average=load,
            cpus=usable_cpus(),
        )

    def _path(self, name: str) -> Path:
        return Path(self._scratch.name) / name

    def _write(self, inputs: Sequence[Tensor]) -> str:
        path = self._path("inputs.safetensors")
        save_file({str(index): value.cpu().contiguous().clone() for index, value in enumerate(inputs)}, path)
        return str(path)

    def _ask(self, action: str, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"action": action, "threads": self._threads, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        name = Path(request.get("path") or request["paths"][0]).name
        if not line:
            status = self._process.wait()
            raise Failure(Code.VERIFICATION_FAILED, f"the runtime died on {name} (exit status {status})", where=name)
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(Code.VERIFICATION_FAILED, f"the runtime refused {name}: {answer['error']}", where=name)
        return answer["result"]


def _percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
