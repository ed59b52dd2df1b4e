from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from models.errors import Failure
from models.reading import ReadOptions
from tests.engine.ingest.named.checkpoints import CHECKPOINTS, Crafted, changed, saved
from worker.engine.ingest.named.checkpoint import Checkpoint, read_checkpoint
from worker.engine.ingest.read import read_network

OPTIONS = ReadOptions(arch="timm/resnet10t", num_classes=10)


@pytest.mark.parametrize("crafted", CHECKPOINTS, ids=lambda crafted: crafted.name)
def test_a_crafted_file_of_weights_is_refused_and_nothing_in_it_runs(crafted: Crafted, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "file"
    path.write_bytes(crafted.make(canary))
    with pytest.raises(Failure) as caught:
        read_network(path, OPTIONS)
    assert caught.value.code == crafted.code, caught.value.message
    assert crafted.says in caught.value.message
    assert len(caught.value.message) < 2500
    assert not canary.exists()


def test_the_canary_is_alive(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "file").write_bytes(next(c for c in CHECKPOINTS if c.name == "call").make(canary))
    torch.load(tmp_path / "file", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("name", ["stride_zero", "nested", "forged_csr", "deflated"])
def test_torch_itself_would_have_taken_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(next(c for c in CHECKPOINTS if c.name == name).make(tmp_path / "canary"))
    torch.load(tmp_path / "file", weights_only=True)


def test_a_message_lists_at_most_twenty_names(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(next(c for c in CHECKPOINTS if c.name == "other_names").make(tmp_path / "canary"))
    with pytest.raises(Failure) as caught:
        read_network(tmp_path / "file", OPTIONS)
    message = caught.value.message
    assert "50 that it does not have" in message
    assert message.count("'") == 2 * 20


_OPCODES = b"()]}]hqtRQbsuea\x85\x86\x87\x88N.c\x93\x94"


def _mutated(content: bytes, choose: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(choose.randint(1, 4)):
        place, length = choose.randrange(len(changed)), choose.randint(1, 8)
        match choose.randrange(4):
            case 0:
                changed[place] = choose.randrange(256)
            case 1:
                changed[place] = choose.choice(_OPCODES)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = content[choose.randrange(len(content)) :][:length]
    return bytes(changed)


def test_mutated_files_end_in_a_failure_or_in_tensors(tmp_path: Path) -> None:
    choose = random.Random(0)
    state = {"a.weight": torch.ones(2, 3), "b": torch.nn.Parameter(torch.ones(3))}
    archive, plain = saved({"state_dict": state, "optimizer": {"state": {0: {"m": torch.ones(2)}}}}), save(state)
    document = zipfile.ZipFile(io.BytesIO(archive)).read("archive/data.pkl")
    path = tmp_path / "file"
    ends: set[object] = set()
    for _ in range(400):
        for kind, content in (
            ("zip", changed(archive, {"data.pkl": _mutated(document, choose)})),
            ("safetensors", _mutated(plain, choose)),
        ):
            path.write_bytes(content)
            try:
                found = read_checkpoint(path, kind)  # type: ignore[arg-type]
            except Failure as failure:
                ends.add(failure.code)
            else:
                ends.add(type(found))
    assert {Checkpoint, "network_rejected", "unsafe_pickle"} <= ends
    assert ends <= {Checkpoint, "network_rejected", "unsafe_pickle", "logical_size_exceeds_storage", "bad_archive"}
