from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.errors import Failure
from models.reading import ReadOptions
from tests.engine.ingest.named.checkpoints import CHECKPOINTS, Crafted
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
