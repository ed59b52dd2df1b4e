"""Real files for whole jobs: a small network and data that it labelled itself."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.networks import NETWORKS, export_pt2


def write_network(name: str, folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    module, example = NETWORKS[name]()
    path = folder / f"{name}.pt2"
    export_pt2(module, example, path)
    return path


def write_data(name: str, folder: Path, samples: int = 240, seed: int = 0, labels: bool = True) -> Path:
    """Random inputs under the network's input names; the label is the class the network itself gives, made even."""
    torch.manual_seed(seed)
    module, example = NETWORKS[name]()
    generator = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for parameter, value in zip(inspect.signature(module.forward).parameters, example, strict=False):
        shape = (samples, *value.shape[1:])
        floats = value.is_floating_point()
        arrays[parameter] = (
            generator.standard_normal(shape).astype(np.float32) if floats else generator.integers(0, 2, shape)
        )
    if labels:
        with torch.no_grad():
            scores = module(*(torch.from_numpy(array) for array in arrays.values()))
        arrays["y"] = (scores - scores.mean(0)).argmax(1).numpy()
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def run_engine(request: dict[str, Any], folder: Path) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, events and log of `python -P -m worker.engine` on `request`."""
    path = folder / "request.json"
    path.write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "worker.engine", str(path)], capture_output=True, text=True, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr
