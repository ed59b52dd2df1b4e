"""A network of gigabytes through the whole service, and what it takes of memory and disk on its way."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import Tensor, nn

from bench.row import Row
from deploy.temporary import temporary_service
from modelpress import Client, prepare
from worker.household import memory_of

STEPS = [{"step": "prune", "amount": {"channels": 0.5}}, {"step": "quantize", "method": "weights"}]
BLOCKS, TOKENS, CLASSES = 5, 8, 16
_PARAMETERS_PER_SQUARE = 8 + 8 * BLOCKS
_POLL_SECONDS = 0.05
PROCESSES = ("api", "control worker", "device worker", "engine")
T = TypeVar("T")


class Large(nn.Module):
    """A table of `8 * width` rows, then blocks that widen four times and narrow again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(8 * width, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)) for _ in range(BLOCKS)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for block in self.blocks:
            x = x + block(x)
        classes: Tensor = self.head(x.mean(1))
        return classes


def write_network(gigabytes: float, path: Path) -> None:
    """A float32 network of that size (1e9 bytes each), for a process of its own: what it took is then given back."""
    width = round((gigabytes * 1e9 / 4 / _PARAMETERS_PER_SQUARE) ** 0.5 / 16) * 16
    torch.manual_seed(0)
    prepare(Large(width), torch.zeros(2, TOKENS, dtype=torch.int64), path)


def large(gigabytes: float) -> list[Row]:
    """Upload, inspection, job and download, each with the largest it took of memory that no file backs."""
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as scratch:
        folder = Path(scratch)
        file = folder / "large.pt2"
        writing = multiprocessing.get_context("spawn").Process(target=write_network, args=(gigabytes, file))
        writing.start()
        writing.join()
        if writing.exitcode:
            raise RuntimeError(f"the network was not written: the process that should ended with {writing.exitcode}")
        size = file.stat().st_size
        rows: list[Row] = []
        with temporary_service(folder / "service") as url, Client(url) as client:

            def measured(what: str, do: Callable[[], T]) -> T:
                with _peaks(folder / "service") as peaks:
                    began = time.monotonic()
                    done = do()
                    rows.append(Row(what, time.monotonic() - began, "s", None))
                rows.extend(Row(f"  {name}", peak / 1e6, "MB", peak / size) for name, peak in peaks.items())
                return done

            model = measured("upload", lambda: client.models.upload(file, wait=False))
            measured("inspection", lambda: client.models.wait(model.id, timeout=3600))
            job = client.jobs.create(model=model, steps=STEPS, export=["pt2"], limits={"timeout_s": 7200})
            measured("job: half of all channels cut, the rest in 8 bits", job.wait)
            if job.status != "succeeded":
                raise RuntimeError(f"job {job.id} {job.status}: {job.error}\n{job.log()[-2000:]}")
            measured("download", lambda: job.download(folder / "out"))
            out = (folder / "out" / "model.pt2").stat().st_size
        return [Row("network", size / 1e6, "MB", 1.0), *rows, Row("file that comes out", out / 1e6, "MB", out / size)]


@contextmanager
def _peaks(folder: Path) -> Iterator[dict[str, int]]:
    """The largest sum over the processes of each kind, and of the disk, while the block runs; filled in at its end."""
    peaks = dict.fromkeys((*PROCESSES, "disk of the service"), 0)
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_POLL_SECONDS):
            now = dict.fromkeys(PROCESSES, 0)
            for process in psutil.Process().children(recursive=True):
                if (kind := _kind(process)) is not None:
                    now[kind] += memory_of(process.pid)
            now["disk of the service"] = sum(_blocks(path) for path in folder.rglob("*"))
            for name, value in now.items():
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        stop.set()
        thread.join()


def _kind(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    for name, wanted in zip(PROCESSES, (["api"], ["worker", "control"], ["worker", "device"]), strict=False):
        if words[-len(wanted) - 1 :] == ["-m", *wanted]:
            return name
    return "engine" if any(word.startswith("worker.engine") for word in words) else None


def _blocks(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
