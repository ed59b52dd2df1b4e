"""The original and the compressed file side by side: metrics, agreement, latency, memory, sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from models.report import Content, Latency, MetricValue
from models.spec import Task
from worker.engine.data.dataset import Split
from worker.engine.measure.agreement import AgreementMeter
from worker.engine.measure.contents import contents
from worker.engine.measure.meters import meter_for
from worker.engine.measure.metrics import BATCH_SIZE, metric_value
from worker.engine.measure.runtime import FreshProcess
from worker.engine.measure.size import file_size_bytes, gzip_size_bytes


@dataclass(frozen=True)
class FileFigures:
    """What was measured of one file, without data."""

    name: str
    size_bytes: int
    gzip_bytes: int
    contents: list[Content]
    latency: Latency
    peak_memory_bytes: int


def measure_file(path: Path, latency: Latency, peak_memory_bytes: int, layers: Collection[str]) -> FileFigures:
    """What was measured of a file that ran, and its sizes, by `layers` too."""
    return FileFigures(
        name=path.name,
        size_bytes=file_size_bytes(path),
        gzip_bytes=gzip_size_bytes(path),
        contents=contents(path, layers),
        latency=latency,
        peak_memory_bytes=peak_memory_bytes,
    )


def score_pair(
    process: FreshProcess,
    original: Path,
    compressed: Path,
    split: Split,
    task: Task,
    output: int,
    on_progress: Callable[[float], None],
) -> tuple[dict[str, MetricValue], dict[str, MetricValue], MetricValue]:
    """Metrics of both files and their agreement, on every sample of `split`, run by the stock runtime."""
    meters = [meter_for(task), meter_for(task)] if split.label_reader is not None else []
    agreement = AgreementMeter(task)
    done = 0
    for batch in split.batches(BATCH_SIZE):
        answers = [process.run(path, batch.inputs)[0][output] for path in (original, compressed)]
        agreement.add(answers[0], answers[1], batch.labels)
        if batch.labels is not None:
            for meter, answer in zip(meters, answers, strict=True):
                meter.add(answer, batch.labels)
        done += len(batch)
        on_progress(done / len(split))
    scores: list[dict[str, MetricValue]] = [
        {name: metric_value(name, value, meter.count, split) for name, value in meter.values().items()}
        for meter in meters
    ]
    before, after = scores or ({}, {})
    return before, after, metric_value("agreement", agreement.value(), len(split), split)
