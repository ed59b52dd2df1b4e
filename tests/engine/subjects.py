"""Lifted networks and runs with real data files, for the tests of every step."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.events import EngineEvent
from models.inspection import TensorInfo
from models.spec import Data, QuantizeStep, Spec, Step
from tests.networks import NETWORKS, export_pt2
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.run import Run
from worker.engine.subject import Subject


@cache
def _file(name: str) -> bytes:
    module, args = NETWORKS[name]()
    with tempfile.TemporaryDirectory() as folder:
        return export_pt2(module, args, Path(folder) / "network.pt2").read_bytes()


def subject_of(name: str) -> Subject:
    """A network of tests/networks.py, read and lifted; nothing is shared between calls."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt2"
        path.write_bytes(_file(name))
        return lift(read_network(path))


def lifted(module: nn.Module, args: tuple[Tensor, ...], folder: Path) -> Subject:
    """Any module, through a file."""
    return lift(read_network(export_pt2(module, args, folder / "network.pt2")))


def samples(inputs: tuple[TensorInfo, ...], count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random arrays under the names of the inputs; integers are token ids, all below 40."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {}
    for info in inputs:
        shape = [count, *(size or 1 for size in info.shape[1:])]
        if info.dtype.startswith("float"):
            arrays[info.name] = generator.standard_normal(shape, dtype=np.float32)
        else:
            arrays[info.name] = generator.integers(1, 40, shape)
    return arrays


def dataset_for(subject: Subject, folder: Path, count: int = 120) -> Dataset:
    """Random unlabelled samples in an `.npz`, opened as a job opens them."""
    path = folder / "data.npz"
    np.savez(path, **samples(subject.inputs, count))  # type: ignore[arg-type]
    return open_dataset(path, Data(dataset="dat_test"), subject.inputs, seed=0)


def run_in(folder: Path, *steps: Step, data: Dataset | None = None) -> Run:
    """A run on the CPU; its events are kept in the list `run.events`."""
    events: list[EngineEvent] = []
    spec = Spec(model="net_test", steps=list(steps) or [QuantizeStep(step="quantize")])
    return Run(spec=spec, folder=folder, emit=events.append, device=torch.device("cpu"), data=data)
