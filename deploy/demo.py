"""`make demo`: the whole service on this machine, a network trained on real digits, and proof of what came back.

Starts the embedded service in a temporary folder, trains a small ResNet, exports and uploads it, has it pruned,
fine-tuned and quantized, downloads the files, reloads them with stock onnxruntime and torch, and scores them itself on
samples that nothing was trained or chosen on. Exit status 0 only if every number of the report holds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from deploy.demo_network import MEAN, STD, Arrays, SmallResNet, accuracy, digits, train
from deploy.temporary import ServiceFailed, temporary_service
from modelpress import Client, Job, ModelpressError, load, prepare, prepare_data
from modelpress.progress import job_bar, transfers

EPOCHS = 8
STEPS = [
    {"step": "prune", "criterion": "l2", "amount": {"macs": 0.5}},
    {"step": "finetune", "epochs": 5, "learning_rate": 2e-3},
    {"step": "quantize", "scheme": "int8"},
]
ACCEPTABLE_DROP = 0.02
"""Of the accuracy on 750 test samples; more would be a failed demonstration."""

_console = Console(highlight=False, soft_wrap=True)
Report = dict[str, Any]


def main(keep: Path | None = None) -> int:
    """The network, the data and the result stay in `keep`; without it nothing stays."""
    began = time.monotonic()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory(prefix="modelpress-demo-") as scratch:
        folder = keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        _say("Starting the service: broker, control worker, device worker, API")
        with temporary_service(Path(scratch) / "service") as url:
            _console.print(f"it listens on {url}")
            data, network = _trained()
            with Client(url) as client:
                job = _compressed(client, data, network, folder)
                if job is None:
                    return 1
                problems = _proved(job, data, network, folder / "result")
        _say(f"Stopped cleanly after {time.monotonic() - began:.0f} s")
    if keep is not None:
        _console.print(f"the network, the data and the result are in {keep}")
    for problem in problems:
        _console.print(f"[red]not as claimed:[/red] {escape(problem)}")
    return 1 if problems else 0


def _say(text: str) -> None:
    _console.print(f"\n[bold]{text}[/bold]")


def _trained() -> tuple[Arrays, SmallResNet]:
    data = digits()
    count = int((data["split"] == "train").sum())
    _say(f"Training a small ResNet on {count:,} MNIST digits for {EPOCHS} epochs, on one core")
    began = time.monotonic()

    def on_epoch(epoch: int, value: float) -> None:
        _console.print(f"epoch {epoch + 1}: {value:.4f} of the validation digits right")

    network = train(data, EPOCHS, on_epoch)
    _console.print(f"trained in {time.monotonic() - began:.0f} s")
    return data, network


def _compressed(client: Client, data: Arrays, network: SmallResNet, folder: Path) -> Job | None:
    """Export, upload, run the job to its end; `None` when it did not succeed."""
    _say("Exporting with modelpress.prepare and uploading over HTTP")
    network_file = prepare(network, torch.zeros(1, 1, 28, 28), folder / "resnet.pt2")
    data_file = prepare_data(data, folder / "digits.npz")
    with transfers(_console) as show:
        model = client.models.upload(network_file, progress=lambda done, size: show(network_file.name, done, size))
        dataset = client.datasets.upload(data_file, progress=lambda done, size: show(data_file.name, done, size))
    prunable = sum(layer["prunable"] for layer in model.layers)
    _console.print(f"{model.id}: {model.parameters:,} parameters, {model.macs:,} MACs, {prunable} prunable layers")
    _console.print(f"{dataset.id}: {dataset.samples:,} samples, {dataset.splits}")

    _say("Pruning half of the multiply-accumulates, fine-tuning, quantizing to 8-bit integers")
    job = client.jobs.create(
        name="demo",
        model=model,
        data={"dataset": dataset.id, "task": "classification", "transform": {"mean": [MEAN], "std": [STD]}},
        steps=STEPS,
    )
    with job_bar(_console, job) as on_event:
        job.wait(on_event=on_event)
    if job.status != "succeeded":
        _console.print(f"[red]The job {job.status}:[/red] {escape(str(job.error))}\n{escape(job.log()[-3000:])}")
        return None
    return job


def _proved(job: Job, data: Arrays, network: SmallResNet, folder: Path) -> list[str]:
    """Download, reload with the stock runtimes, score the test split here; what does not hold, in words."""
    _say("Downloading, reloading with stock onnxruntime and torch, scoring the test digits here")
    with transfers(_console) as show:
        job.download(folder, progress=show)
    report = job.report()
    here = {
        "original": accuracy(network, data, "test"),
        "onnx": accuracy(_onnx(folder / "model.onnx"), data, "test"),
        "pt2": accuracy(load(folder), data, "test"),
    }
    _console.print(_table(report, here))
    return _broken_claims(report, here, folder)


def _onnx(path: Path) -> Callable[[Tensor], Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _table(report: Report, here: dict[str, float]) -> Table:
    table = Table(title="Before and after, on 750 digits that nothing was trained or chosen on")
    table.add_column("")
    for heading in ("original", "compressed", "change"):
        table.add_column(heading, justify="right")
    for pair in report["files"]:
        form, before, after = pair["format"], pair["original"], pair["compressed"]
        runtime = after["latency_ms"]["runtime"]
        reported = [side["metrics"]["accuracy"]["value"] for side in (before, after)]
        table.add_section()
        _share_row(table, f"[bold]{after['file']}[/bold]: accuracy, reported", reported[0], reported[1])
        _share_row(table, f"accuracy, measured here ({runtime})", here["original"], here[form])
        _size_row(table, "parameters", before["parameters"], after["parameters"])
        _size_row(table, "MACs per sample", before["macs"], after["macs"])
        _size_row(table, "file size, bytes", before["file_size_bytes"], after["file_size_bytes"])
        latencies = [side["latency_ms"]["p50"] for side in (before, after)]
        _size_row(table, f"latency, ms ({runtime}, one sample)", latencies[0], latencies[1], "{:.3f}")
    return table


def _share_row(table: Table, label: str, before: float, after: float) -> None:
    table.add_row(label, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")


def _size_row(table: Table, label: str, before: float, after: float, form: str = "{:,}") -> None:
    change = f"{before / after:.2f}x less" if after <= before else f"{after / before:.2f}x more"
    table.add_row(label, form.format(before), form.format(after), change)


def _broken_claims(report: Report, here: dict[str, float], folder: Path) -> list[str]:
    broken = []

    def claim(holds: bool, otherwise: str) -> None:
        if not holds:
            broken.append(otherwise)

    for pair in report["files"]:
        form, before, after = pair["format"], pair["original"], pair["compressed"]
        file = folder / after["file"]
        for name, side, found in (("original", before, here["original"]), (after["file"], after, here[form])):
            said = side["metrics"]["accuracy"]
            samples = abs(said["value"] - found) * said["n"]
            claim(
                said["split"] == "test" and samples < 0.5,
                f"{name} scores {found:.4f} here; the report: {said['value']:.4f} on {said['n']} of {said['split']}",
            )
        claim(file.stat().st_size == after["file_size_bytes"], f"{file.name} has {file.stat().st_size} bytes")
        claim(after["file_size_bytes"] < before["file_size_bytes"] / 2, f"{file.name} is not half as large")
        claim(after["parameters"] < before["parameters"], f"{file.name} has as many parameters as before")
        lost = before["metrics"]["accuracy"]["value"] - here[form]
        claim(lost <= ACCEPTABLE_DROP, f"{file.name} lost {lost:.4f} of accuracy, more than {ACCEPTABLE_DROP}")
    macs = report["compressed"]["macs"] / report["original"]["macs"]
    claim(abs(macs - 0.5) < 0.05, f"{macs:.2f} of the multiply-accumulates are left, not half")
    claim(all(entry["reloaded"] for entry in report["verification"]), "a file was not reloaded")
    claim(report["mask_check"] is not None, "the cut was not checked against the masked network")
    return broken


def run() -> int:
    """`main`, with the ends that are not a defect said in a line."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the network, the data and the result there")
    try:
        return main(parser.parse_args().keep)
    except KeyboardInterrupt:
        _console.print("\nStopped.")
        return 130
    except (ServiceFailed, ModelpressError) as error:
        _console.print(f"[red]error:[/red] {escape(str(error))}")
        return 1


if __name__ == "__main__":
    sys.exit(run())
