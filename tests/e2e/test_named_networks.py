"""Weights and the name of their network, sent to the whole service: inspected confined, pruned, delivered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import modelpress
from deploy.temporary import temporary_service
from modelpress import Client
from tests import torchvision_ops
from tests.engine.ingest.named.folders import small_network
from tests.networks import randomised

PRUNE: dict[str, Any] = {"step": "prune", "amount": {"parameters": 0.5}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with temporary_service(tmp_path_factory.mktemp("named")) as url, Client(url) as client:
        yield client


def _timm(name: str) -> torch.nn.Module:
    torchvision_ops.declare()
    import timm

    return randomised(timm.create_model(name, pretrained=False, num_classes=10))


def _delivered(client: Client, network_id: str, folder: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    job = client.jobs.create(model=network_id, steps=[PRUNE], export=["pt2"])
    job.wait()
    assert job.status == "succeeded", (job.error, job.log())
    job.download(folder)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return modelpress.load(folder), report


def _halved(report: dict[str, Any]) -> bool:
    before, after = report["original"]["parameters"], report["compressed"]["parameters"]
    return bool(0.4 * before < after < 0.6 * before)


def test_resnet18_as_safetensors_is_pruned_and_delivered(client: Client, tmp_path: Path) -> None:
    save_file(_timm("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    network = client.models.upload(tmp_path / "resnet18.safetensors", arch="timm/resnet18", input_shape=["1,3,32,32"])
    assert (network.format, network.parameters) == ("safetensors", 11_181_642)
    assert network.inputs == [{"name": "x", "dtype": "float32", "shape": [None, 3, 32, 32]}]
    smaller, report = _delivered(client, network.id, tmp_path / "out")
    assert _halved(report)
    assert smaller(torch.zeros(3, 3, 32, 32)).shape == (3, 10)


def test_a_training_checkpoint_of_mobilenet_is_pruned_and_its_optimizer_is_no_compression(
    client: Client, tmp_path: Path
) -> None:
    module = _timm("mobilenetv3_small_050")
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    path = tmp_path / "last.pth"
    torch.save({"epoch": 3, "arch": "mobilenetv3", "state_dict": state, "optimizer": optimizer.state_dict()}, path)
    network = client.models.upload(path, arch="timm/mobilenetv3_small_050", input_shape=["1,3,32,32"])
    assert network.format == "pth"
    assert [warning["code"] for warning in network.warnings] == ["rest_of_file_left_out"]
    assert "'optimizer'" in network.warnings[0]["message"]
    _, report = _delivered(client, network.id, tmp_path / "out")
    assert _halved(report)
    assert report["original"]["file_size_bytes"] < 0.6 * path.stat().st_size


def test_a_folder_of_bert_in_two_shards_is_pruned_and_delivered(client: Client, tmp_path: Path) -> None:
    small_network("BertForSequenceClassification").save_pretrained(tmp_path / "bert", max_shard_size="50KB")
    assert len(list((tmp_path / "bert").glob("*.safetensors"))) == 2
    network = client.models.upload(tmp_path / "bert", arch="transformers", input_shape=["1,16"])
    assert network.format == "transformers"
    assert [(entry["name"], entry["shape"]) for entry in network.inputs] == [
        ("input_ids", [None, 16]),
        ("attention_mask", [None, 16]),
    ]
    smaller, report = _delivered(client, network.id, tmp_path / "out")
    assert _halved(report)
    tokens = torch.ones(3, 16, dtype=torch.int64)
    assert smaller(tokens, tokens)["logits"].shape == (3, 3)
