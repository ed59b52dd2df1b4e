"""Weights of few bits: the file against the arithmetic of its bits, and what is right with and without training.

The demo's network in every scheme, the packed file against codes and tables counted by hand plus everything else as it
is; then accuracy on digits that nothing was trained on, before and after a few epochs with the weights as delivered.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from deploy.demo_network import MEAN, STD, Arrays, accuracy, digits, train
from modelpress import prepare
from models.spec import Data, Spec, Step, Transform
from worker.engine.data.dataset import open_dataset
from worker.engine.export.onnx import export_onnx
from worker.engine.export.packed import export_packed
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.lowbit.step import run as quantize
from worker.engine.measure.unpack import PROGRAM
from worker.engine.run import Run
from worker.engine.subject import Subject
from worker.engine.train.step import run as finetune

TRAINED_EPOCHS = 3
TUNED: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3}
INPUT = torch.zeros(2, 1, 28, 28)
SCHEMES: dict[str, tuple[dict[str, Any], bool]] = {
    "6 bits, groups of 64": ({"scheme": "int4", "bits": 6}, False),
    "4 bits, groups of 64": ({"scheme": "int4"}, True),
    "3 bits, groups of 64": ({"scheme": "int4", "bits": 3}, True),
    "2 bits, groups of 32": ({"scheme": "int4", "bits": 2, "group_size": 32}, True),
    "codebook of 16": ({"scheme": "codebook", "bits": 4}, False),
    "codebook of 4": ({"scheme": "codebook", "bits": 2}, True),
    "ternary": ({"scheme": "ternary"}, True),
    "binary": ({"scheme": "binary"}, True),
}
"""How each is asked for, and whether it is trained as well."""


def sizes(console: Console) -> None:
    """Print one table."""
    data = digits()
    console.print("training the demo's network …")
    network = train(data, TRAINED_EPOCHS, lambda epoch, value: None)
    table = Table(title=f"float: {accuracy(network, data, 'test'):.1%} right")
    for heading in ("", "bits a weight", "packed", "against arithmetic", "ONNX", "float", "right", "after training"):
        table.add_column(heading, justify="right" if heading else "left")
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as scratch:
        folder = Path(scratch)
        prepare(network.eval(), (INPUT,), path=folder / "network.pt2")
        np.savez(folder / "digits.npz", **data)  # type: ignore[arg-type]
        for name, (fields, trained) in SCHEMES.items():
            console.print(f"measuring {name} …")
            table.add_row(name, *_row(fields, data, folder, trained=trained))
    console.print(table)


def _row(fields: dict[str, Any], data: Arrays, folder: Path, *, trained: bool) -> list[str]:
    subject, details = _quantized(fields, folder)
    export_packed(subject.network(), subject, folder / "model.safetensors")
    export_packed(subject.original, subject, folder / "original.safetensors")
    export_onnx(subject.network(), subject, folder / "model.onnx")
    packed, whole = ((folder / f"{name}.safetensors").stat().st_size for name in ("model", "original"))
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        program = file.get_tensor(PROGRAM).numel()
    weights = sum(each.codes.numel() for each in subject.coded.values())
    bits = 8 * sum(each.stored_bytes() for each in subject.coded.values()) / weights
    tuned = accuracy(_quantized(fields | TUNED, folder)[0].graph, data, "test") if trained else None
    return [
        f"{bits:.2f}",
        f"{packed:,}",
        f"{(packed - program) / details['bytes']:.3f}x",
        f"{(folder / 'model.onnx').stat().st_size:,}",
        f"{whole:,}",
        f"{accuracy(subject.graph, data, 'test'):.1%}",
        "" if tuned is None else f"{tuned:.1%}",
    ]


def _quantized(fields: dict[str, Any], folder: Path) -> tuple[Subject, dict[str, Any]]:
    subject = lift(read_network(folder / "network.pt2"))
    step = TypeAdapter[Any](Step).validate_python({"step": "quantize", **fields})
    asked = Data(
        dataset="digits", task="classification", metric="accuracy", transform=Transform(mean=[MEAN], std=[STD])
    )
    spec = Spec(model="demo", data=asked, steps=[step])
    opened = open_dataset(folder / "digits.npz", asked, subject.inputs, 0)
    run = Run(spec, folder, lambda event: None, torch.device("cpu"), data=opened, train=finetune)
    return subject, quantize(subject, step, run)
