"""What each command of `modelpress` does; every function takes its options and returns the exit status."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modelpress.client import Client, Uploads
from modelpress.comparison import comparison
from modelpress.job import Job
from modelpress.network_file import prepare as prepare_network
from modelpress.offline import check as check_file
from modelpress.offline import operate as operate_service
from modelpress.outcomes import ModelpressError, describe_error
from modelpress.progress import job_bar, note, transfers
from modelpress.sensitivity_table import sensitivity_tables
from modelpress.types import Upload

OUTCOMES = {"succeeded": 0, "failed": 1, "cancelled": 3}

_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)
Options = argparse.Namespace

_DATA_ENDINGS = (".npz", ".npy", ".zip", ".safetensors", ".h5", ".hdf5", ".parquet", ".tfrecord", ".tfrecords")


def _client(options: Options) -> Client:
    return Client(options.url, options.key)


def prepare(options: Options) -> int:
    from modelpress.own_code import example_tensors, make_network

    network = make_network(options.source)
    examples = example_tensors(options.example) if options.example else None
    file = prepare_network(network, examples, Path(options.output))
    _out.print(f"{escape(str(file))}  {file.stat().st_size:,} bytes")
    return 0


def check(options: Options) -> int:
    data = options.data or (not options.arch and options.file.endswith(_DATA_ENDINGS))
    found = check_file(options.file, **_reading(options), data=data)
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    if data:
        return _show_data(options.file, found)
    prunable = sum(layer["prunable"] for layer in found["layers"])
    _out.print(f"{escape(options.file)}: ready to upload")
    _out.print(f"  {found['parameters']:,} parameters, {found['macs']:,} MACs per sample")
    _out.print(f"  {len(found['layers'])} layers, {prunable} of them prunable, in {len(found['groups'])} groups")
    for side in ("inputs", "outputs"):
        tensors = [f"{tensor['name']} {tensor['dtype']}{tensor['shape']}" for tensor in found[side]]
        _out.print(escape(f"  {side}: {', '.join(tensors)}").replace("None", "*"))
    for warning in found["warnings"]:
        _out.print(f"  warning: {escape(warning['message'])}")
    return 0


def _show_data(file: str, found: dict[str, Any]) -> int:
    _out.print(f"{escape(file)}: ready to upload")
    _out.print(f"  {found['format']}, {found['samples']:,} samples")
    inputs = [f"{tensor['name']} {tensor['dtype']}{tensor['shape']}" for tensor in found["inputs"]]
    _out.print(escape(f"  inputs: {', '.join(inputs)}").replace("None", "*"))
    labels = found["labels"]
    if labels is not None:
        classes = f", {labels['classes']} different" if labels["classes"] is not None else ""
        told = (
            f"  labels: {labels['dtype']}{labels['shape']} from {labels['minimum']:g} to {labels['maximum']:g}{classes}"
        )
        _out.print(escape(told))
    for name, count in (found["splits"] or {}).items():
        _out.print(f"  {name}: {count:,}")
    for warning in found["warnings"]:
        _out.print(f"  warning: {escape(warning['message'])}")
    return 0


def _reading(options: Options) -> dict[str, Any]:
    return {"input_shape": options.input_shape, "arch": options.arch, "num_classes": options.num_classes}


def upload(options: Options) -> int:
    with _client(options) as client:
        if options.data or not (options.arch or options.file.endswith((".pt2", ".onnx", ".tar", ".pt", ".pth"))):
            sent = _send(client.datasets, options.file, options.name)
        else:
            sent = _send(client.models, options.file, options.name, **_reading(options))
        _out.print(sent.id)
    return 0


def compress(options: Options) -> int:
    with _client(options) as client:
        network = _send(client.models, options.file, **_reading(options))
        data: dict[str, Any] = {"dataset": _send(client.datasets, options.data)} if options.data else {}
        job = client.jobs.create(model=network, preset=options.preset, **data)
        status = _watch(job)
        if status == 0:
            _fetch(job, options.output)
            _out.print(comparison(job.report()))
        return status


def submit(options: Options) -> int:
    text = sys.stdin.read() if options.spec == "-" else Path(options.spec).read_text()
    try:
        spec = json.loads(text)
    except ValueError as error:
        raise ModelpressError(f"{options.spec} is not JSON: {error}.") from error
    if not isinstance(spec, dict):
        raise ModelpressError(f"{options.spec} should hold one JSON object.")
    if options.webhook:
        spec["webhook"] = {"url": options.webhook}
    with _client(options) as client:
        if options.dry_run:
            print(json.dumps(client.jobs.dry_run(**spec), indent=1))
            return 0
        job = client.jobs.create(**spec)
        _out.print(job.id)
        status = _watch(job) if options.wait else 0
        if options.wait and status == 0:
            report = job.report()
            if report.get("compressed"):
                _out.print(comparison(report))
            for table in sensitivity_tables(report):
                _out.print(table)
        return status


def jobs(options: Options) -> int:
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "status", "where", "name", "created"):
        table.add_column(heading)
    with _client(options) as client:
        for job in client.jobs.list(status=options.status, limit=options.limit):
            where = f"{job.phase or ''} {job.percent:.0f}%".strip() if job.status == "running" else note(job.progress)
            where = f"{job.queue_position} in the queue" if job.queue_position is not None else where
            shown = where if not job.is_finished else (job.error or {}).get("code", "")
            table.add_row(job.id, job.status, escape(shown), escape(job.name or ""), job.created_at[:19])
    _out.print(table)
    return 0


def watch(options: Options) -> int:
    with _client(options) as client:
        return _watch(client.jobs.get(options.job))


def log(options: Options) -> int:
    with _client(options) as client:
        sys.stdout.write(client.jobs.get(options.job).log())
    return 0


def cancel(options: Options) -> int:
    with _client(options) as client:
        _out.print(client.jobs.cancel(options.job).status)
    return 0


def fetch(options: Options) -> int:
    with _client(options) as client:
        _fetch(client.jobs.get(options.job), options.output)
    return 0


def operate(options: Options) -> int:
    return operate_service(options.words)


def demo(options: Options) -> int:
    done = subprocess.run([sys.executable, "-P", "-m", "deploy.demo"], check=False)
    return done.returncode


def _send(kind: Uploads[Any], file: str, name: str | None = None, **given: Any) -> Upload:
    path = Path(file)
    with transfers(_err) as show:

        def one(done: int, size: int) -> None:
            show(path.name, done, size)

        sent: Upload = kind.upload(path, name, wait=False, progress=one, **given)
    with _err.status(f"{escape(path.name)}: the service reads it"):
        ready: Upload = kind.wait(sent.id)
    return ready


def _watch(job: Job) -> int:
    try:
        _err.print(f"watching {job.id} (Ctrl-C stops watching, not the job)")
        with job_bar(_err, job) as show:
            job.wait(on_event=show)
    except KeyboardInterrupt:
        _err.print(f"\nJob {job.id} goes on. Watch it again: modelpress watch {job.id}")
        _err.print(f"Stop it: modelpress cancel {job.id}")
        return 130
    if job.status == "succeeded":
        return 0
    _err.print(f"[red]{escape(job.status)}[/red] {escape(describe_error(job.error))}".rstrip())
    if job.status == "failed":
        _err.print(f"The log: modelpress log {job.id}")
    return OUTCOMES.get(job.status, 1)


def _fetch(job: Job, folder: str | None) -> None:
    with transfers(_err) as show:
        progress: Callable[[str, int, int], None] = show
        where = job.download(folder or job.id, progress=progress)
    _out.print(escape(str(where)))
