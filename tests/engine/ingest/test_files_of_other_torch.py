"""Files that torch 2.5 to 2.15 themselves wrote (`written/write.py`), read, lifted and cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.graph.cuts import halve_and_prove
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.measure.compare import outputs_of

FOLDER = Path(__file__).with_name("written")
FILES = sorted(path.stem for path in FOLDER.glob("*.pt2"))
VERSIONS = ("2.10.0", "2.11.0", "2.12.1", "2.14.1", "2.15.0", "2.5.1", "2.6.0", "2.7.1", "2.8.0", "2.9.1")


def test_every_version_wrote_every_network() -> None:
    assert [name.partition("-")[2] for name in FILES] == list(VERSIONS) * 3


@pytest.mark.parametrize("name", FILES)
def test_what_another_torch_wrote_gives_its_outputs(name: str) -> None:
    subject = lift(read_network(FOLDER / f"{name}.pt2"))
    arrays = np.load(FOLDER / f"{name}.npz")
    with torch.no_grad():
        found = outputs_of(subject.graph(torch.from_numpy(arrays["inputs"])))
    expected = [torch.from_numpy(arrays[f"output{index}"]) for index in range(len(arrays.files) - 1)]
    torch.testing.assert_close(list(found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_what_another_torch_wrote_is_cut_like_any_other(name: str) -> None:
    subject = lift(read_network(FOLDER / f"{name}.pt2"))
    inputs = torch.from_numpy(np.load(FOLDER / f"{name}.npz")["inputs"])
    assert halve_and_prove(subject.graph, (inputs,)).removed
