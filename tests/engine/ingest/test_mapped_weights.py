"""Weights of a `.pt2` stay in the file: they take memory only where a network of gigabytes is changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from tests.engine.ingest.archives import Archive as Parts
from tests.networks import export_pt2
from worker.engine.graph.lift import lift
from worker.engine.ingest.archive import Archive
from worker.engine.ingest.read import read_network
from worker.engine.ingest.weights import read_tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return export_pt2(nn.Sequential(nn.Linear(64, 256)), (torch.randn(2, 64),), tmp_path / "network.pt2")


def _lies_in(tensor: Tensor, file: Path) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return line.endswith(str(file))
    return False


def test_the_original_lies_in_the_file_and_the_network_that_steps_change_does_not(file: Path) -> None:
    content = file.read_bytes()
    subject = lift(read_network(file))
    original, own = (graph.get_parameter("0.weight") for graph in (subject.original, subject.graph))
    assert _lies_in(original, file)
    assert not _lies_in(own, file)
    assert own.requires_grad
    assert not original.requires_grad
    kept = original.clone()
    with torch.no_grad():
        own.add_(1)
        assert torch.equal(original, kept)
        original.add_(1)
    assert file.read_bytes() == content


def test_two_tensors_of_one_member_have_memory_of_their_own(file: Path) -> None:
    parts = Parts.of(file.read_bytes())
    config = parts.weights["config"]
    config["again"] = config["0.weight"] | {"is_param": False}
    tensors = read_tensors(Archive(parts.write(file))).values
    with torch.no_grad():
        tensors["again"].zero_()
    assert tensors["0.weight"].abs().min() > 0


def test_a_flipped_bit_of_a_weight_is_found(file: Path) -> None:
    weight = read_tensors(Archive(file)).values["0.weight"].detach().numpy().tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(weight) + 100] ^= 1
    file.write_bytes(content)
    with pytest.raises(Failure, match="CRC") as failure:
        read_network(file)
    assert failure.value.code is Code.BAD_ARCHIVE
