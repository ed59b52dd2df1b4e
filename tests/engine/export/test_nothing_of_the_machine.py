"""No file that leaves tells where, by whom or from what source it was made, also inside what it packs."""

from __future__ import annotations

import io
import re
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.spec import ExportFormat
from tests.engine.subjects import subject_of
from tests.networks import NETWORKS
from worker.engine.deliver import EXPORTERS
from worker.engine.measure.metrics import forward_of
from worker.engine.measure.unpack import unpack
from worker.engine.measure.verify import verify

ROOT = Path(__file__).resolve().parents[3]
FORMATS: tuple[ExportFormat, ...] = ("onnx", "pt2", "safetensors")
SEVERAL = ("two_towers", "bert", "gru")
"""Two inputs and a dict of outputs, integers and a mask, a state."""
SOURCE_LINE = re.compile(rb"[\w/-]+\.py\b|Traceback|File \"|stack_trace|site-packages")


def marks(*folders: Path) -> set[bytes]:
    """What would give this machine away."""
    given = {str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, *map(str, folders)}
    words = {value.encode() for value in given if len(value) > 5}
    return words | {name.encode() for name in (socket.gethostname(),) if len(name) > 5}


def layers_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """The file, and what is packed in it."""
    yield path.name, path.read_bytes()
    if path.suffix == ".safetensors":
        yield from _members(unpack(path).getvalue())
    elif zipfile.is_zipfile(path):
        yield from _members(path.read_bytes())


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if "/weights/weight_" not in name:  # values of the network: any byte may be there
                yield name, archive.read(name)


def assert_nothing_inside(path: Path, *folders: Path) -> None:
    known = marks(*folders)
    for name, content in layers_of(path):
        assert not [mark for mark in known if mark in content], name
        found = SOURCE_LINE.search(content)
        assert found is None, (name, found)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_of_any_kind_of_network_computes_the_same_and_says_nothing_of_its_origin(
    name: str, form: ExportFormat, tmp_path: Path
) -> None:
    subject = subject_of(name)
    path = tmp_path / f"model.{form}"
    EXPORTERS[form](subject.network(), subject, path)
    assert_nothing_inside(path, tmp_path)
    inputs = subject.example_inputs(3)
    network = subject.network()
    found = verify(
        path,
        inputs,
        forward_of(network)(inputs),
        tmp_path,
        integer=False,
        unpacks_to=network if form == "safetensors" else None,
    )
    assert found.reloaded


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    module, args = NETWORKS["gru"]()
    program = torch.export.export(module, args)
    torch.export.save(program, tmp_path / "plain.pt2")  # as torch writes it: with the lines of the source
    with pytest.raises(AssertionError):
        assert_nothing_inside(tmp_path / "plain.pt2")
    (tmp_path / "home.onnx").write_bytes(b"..." + str(ROOT).encode())
    with pytest.raises(AssertionError):
        assert_nothing_inside(tmp_path / "home.onnx")
    np.save(tmp_path / "clean.npy", np.zeros(3))
    assert_nothing_inside(tmp_path / "clean.npy", tmp_path)
