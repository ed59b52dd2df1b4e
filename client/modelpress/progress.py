"""What a person sees while bytes travel and a job runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from modelpress.job import Job
from modelpress.types import Event, Json


@contextmanager
def transfers(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Bars for uploads and downloads; call the result with (name, bytes done, bytes in all)."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, size: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(escape(name), total=size)
            bars.update(tasks[name], completed=done, total=size)

        yield show


@contextmanager
def job_bar(console: Console, job: Job) -> Iterator[Callable[[Event], None]]:
    """A bar of the whole job, lines for what is worth keeping; call the result with each event."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task(job.status, total=100, note="")

        def show(event: Event) -> None:
            if line := describe(event):
                bars.console.print(escape(line), highlight=False)
            running = job.status == "running"
            label = (job.phase or job.status) if running else job.status
            bars.update(task, description=escape(label), completed=job.percent, note=escape(note(job.progress)))

        yield show


def note(progress: Json) -> str:
    """Where a job is: step, epoch, time left; empty when it has not said."""
    parts = []
    if progress.get("step_index") is not None and progress.get("step_count"):
        parts.append(f"step {progress['step_index'] + 1}/{progress['step_count']}")
    if progress.get("epoch") is not None and progress.get("epochs"):
        parts.append(f"epoch {progress['epoch']}/{progress['epochs']}")
    if progress.get("eta_seconds"):
        parts.append(f"{progress['eta_seconds']:.0f} s left")
    return ", ".join(parts)


def describe(event: Event) -> str:
    """An event worth a line of its own; empty for the rest, and for types this client does not know."""
    data = event.data
    if event.type == "warning":
        return f"warning: {(data.get('notice') or {}).get('message', '')}"
    if event.type == "step":
        return _step(data.get("report") or {})
    if event.type == "status" and data.get("message"):
        return f"{data.get('status')}: {data['message']}"
    return ""


def _step(report: Json) -> str:
    after = report.get("after") or {}
    parts = [f"step {report.get('index', 0) + 1} {report.get('step', '')} done in {report.get('seconds', 0):.1f} s"]
    for name, metric in (after.get("metrics") or {}).items():
        parts.append(f"{name} {metric['value']:.4f} ({metric['split']})")
    if after.get("parameters") is not None:
        parts.append(f"{after['parameters']:,} parameters, {after.get('macs', 0):,} MACs")
    return "; ".join(parts)
