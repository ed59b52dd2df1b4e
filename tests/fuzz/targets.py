"""Every reader of uploaded files: what it is tried with, how it is called, and which code is its own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.errors import Failure
from models.formats import HEAD_BYTES, identify_network_archive, sniff_network
from models.inspection import DatasetInspection, NetworkInspection, TensorInfo
from models.spec import Data
from tests.fuzz import drawn, seeds
from worker.engine.data.dataset import open_dataset
from worker.engine.data.inspect import inspect_dataset
from worker.engine.graph.describe import describe_network
from worker.engine.graph.lift import lift
from worker.engine.ingest.named.checkpoint import matched, read_checkpoint
from worker.engine.ingest.named.folder import Folder
from worker.engine.ingest.read import read_network

Inspection = DatasetInspection | NetworkInspection
Read = Callable[[Path], Sequence[Inspection]]

ARCH = "timm/resnet18"
DATA, INGEST = "worker/engine/data", "worker/engine/ingest"


@dataclass(frozen=True)
class Target:
    """`read` returns what was found, or raises `Failure`. `readers` are the files whose lines are counted. `anew` has a
    library write a file that was never a seed. `short` is how many files the tests take."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Read
    readers: tuple[str, ...]
    short: int
    anew: Callable[[random.Random], bytes] | None = None


def read_graph(path: Path) -> list[Inspection]:
    """As an inspection does, and then the network runs once as steps run it."""
    program = read_network(path)
    subject = lift(program)
    inspection = describe_network(subject, program.format, program.warnings)
    with torch.no_grad():
        subject.graph(*subject.example_inputs(2))
    return [inspection]


def read_data(path: Path) -> list[Inspection]:
    """As an inspection does, and then every batch is read as a job reads it, unless the job would be refused."""
    inspection = inspect_dataset(path)
    wanted = tuple(_taking(info, inspection) for info in inspection.inputs)
    with contextlib.suppress(Failure):
        dataset = open_dataset(path, Data(dataset="d"), wanted, seed=0)
        for part in (dataset.train, dataset.val, dataset.test):
            for _ in part.batches(8):
                pass
    return [inspection]


def _taking(info: TensorInfo, inspection: DatasetInspection) -> TensorInfo:
    """An input of a network that takes these samples."""
    shape = list(info.shape)
    if inspection.image_sizes is not None:
        shape = [3, inspection.image_sizes.maximum_height, inspection.image_sizes.maximum_width]
    kind = "float32" if info.dtype.startswith(("float", "uint8")) else "int64"
    return TensorInfo(name=info.name, dtype=kind, shape=[None, *shape])


def read_weights(path: Path) -> list[Inspection]:
    """What is right goes into a network of the names and shapes of the seeds."""
    with path.open("rb") as file:
        kind = sniff_network(file.read(HEAD_BYTES), path.stat().st_size, arch=ARCH)
    if kind == "zip":
        identify_network_archive(path, ARCH)
    assert kind in ("zip", "safetensors")
    checkpoint = read_checkpoint(path, kind)
    module: nn.Module = seeds.small_module()
    with contextlib.suppress(Failure):
        module.load_state_dict(matched(checkpoint.tensors, module.state_dict(), "the network"))
        module(torch.zeros(2, 3))
    return []


def read_folder(path: Path) -> list[Inspection]:
    with Folder(path) as folder:
        folder.tensors()
    return []


def any_of(*reads: Read) -> Read:
    """For files that are of use in more than one way: refused where all refuse."""

    def read(path: Path) -> list[Inspection]:
        found: list[Inspection] = []
        refusals = []
        for one in reads:
            try:
                found += one(path)
            except Failure as failure:
                refusals.append(failure)
        if len(refusals) == len(reads):
            raise refusals[0]
        return found

    return read


def _in(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.py" for name in names)


TARGETS: tuple[Target, ...] = (
    Target(
        "pt2",
        seeds.pt2,
        read_graph,
        (
            *_in(INGEST, "archive", "container", "names", "operators", "parameters", "precision", "program", "read"),
            *_in(INGEST, "schema", "stretch", "trace", "treespec", "trial", "weights"),
        ),
        short=40,
    ),
    Target(
        "onnx",
        seeds.onnx,
        read_graph,
        (
            *_in(f"{INGEST}/onnx", "builder", "graph", "known", "layers", "read", "site", "tensors"),
            *_in(f"{INGEST}/onnx/operators", "attention", "constant", "convolve", "elementwise", "merge", "normalise"),
            *_in(f"{INGEST}/onnx/operators", "pool", "recurrent", "reduce", "resize", "select", "shape", "window"),
        ),
        short=80,
    ),
    Target(
        "safetensors",
        seeds.safetensors,
        any_of(read_weights, read_data),
        (*_in(f"{INGEST}/named", "safetensors_file", "checkpoint"), *_in(DATA, "tensors")),
        short=300,
    ),
    Target(
        "pth",
        seeds.pth,
        read_weights,
        (*_in(f"{INGEST}/named", "inert_pickle", "pth", "checkpoint"), *_in(INGEST, "container")),
        short=300,
    ),
    Target("npz", seeds.npz, read_data, _in(DATA, "npy", "npz", "archive", "samples", "splits"), short=300),
    Target(
        "zip",
        seeds.zips,
        any_of(read_data, read_folder),
        (*_in(DATA, "archive", "folders", "images", "pictures"), *_in(f"{INGEST}/named", "folder")),
        short=150,
    ),
    Target(
        "tar",
        seeds.tars,
        any_of(read_data, read_graph),
        (*_in(DATA, "tar", "webdataset", "folders"), *_in(f"{INGEST}/onnx", "archive")),
        short=150,
    ),
    Target("hdf5", seeds.hdf5, read_data, _in(DATA, "hdf5", "hdf5_chunks", "hdf5_texts"), short=150, anew=drawn.hdf5),
    Target("parquet", seeds.parquet, read_data, _in(DATA, "parquet", "table"), short=150, anew=drawn.parquet),
    Target("tfrecord", seeds.tfrecord, read_data, _in(DATA, "tfrecord", "protobuf", "table"), short=300),
)
