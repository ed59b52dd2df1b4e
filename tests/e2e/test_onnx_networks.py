"""ONNX files, sent to the whole service: inspected confined, pruned, trained, quantized, delivered."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from deploy.temporary import temporary_service
from modelpress import Client
from modelpress.outcomes import UploadRejected
from tests.engine.ingest.onnx.exports import export_onnx
from tests.networks import NETWORKS

CHAIN: list[dict[str, Any]] = [
    {"step": "prune", "amount": {"macs": 0.5}, "round_to": 2},
    {"step": "finetune", "epochs": 1},
    {"step": "quantize", "calibration_samples": 32},
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with temporary_service(tmp_path_factory.mktemp("onnx")) as url, Client(url) as client:
        yield client


def _with_open_sizes(path: Path) -> Path:
    """A file for images of any size, as many are."""
    network = onnx.load(path)
    for place, name in ((2, "height"), (3, "width")):
        network.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    onnx.save(network, path)
    return path


def test_a_convolutional_network_is_pruned_trained_quantized_and_delivered(client: Client, tmp_path: Path) -> None:
    module, args = NETWORKS["resnet18"]()
    path = _with_open_sizes(export_onnx(module, args, tmp_path / "network.onnx", "torchscript"))
    with pytest.raises(UploadRejected, match=r"input_shape=1,3,SIZE,SIZE"):
        client.models.upload(path)
    network = client.models.upload(path, input_shape=["1,3,32,32"])
    assert (network.format, network.inputs[0]["shape"]) == ("onnx", [None, 3, 32, 32])
    assert network.read_options["input_shape"] == ["1,3,32,32"]
    assert {layer["name"] for layer in network.layers} >= {"conv1", "layer1.0.conv1", "fc"}

    images = np.random.default_rng(0).standard_normal((60, 3, 32, 32)).astype(np.float32)
    with torch.no_grad():
        scores = module(torch.from_numpy(images))
    np.savez(tmp_path / "data.npz", x=images, y=(scores - scores.mean(0)).argmax(1).numpy())
    data = client.datasets.upload(tmp_path / "data.npz")
    job = client.jobs.create(model=network, dataset=data.id, steps=CHAIN, export=["onnx"])
    job.wait()
    assert job.status == "succeeded", (job.error, job.log())
    job.download(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["compressed"]["macs"] == pytest.approx(report["original"]["macs"] * 0.5, rel=0.06)
    assert all(row["reloaded"] for row in report["verification"])
    assert "batch_norm_merged" in [warning["code"] for warning in report["warnings"]]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {session.get_inputs()[0].name: images[:5]})[0].shape == (5, 10)


def test_weights_in_a_file_of_their_own_come_as_a_tar_archive(client: Client, tmp_path: Path) -> None:
    module, args = NETWORKS["gru"]()
    export_onnx(module, args, tmp_path / "network.onnx", "torchscript")
    onnx.save(
        onnx.load(tmp_path / "network.onnx"),
        tmp_path / "network.onnx",
        save_as_external_data=True,
        location="network.data",
        size_threshold=0,
    )
    with pytest.raises(UploadRejected, match=r"tar cf network\.tar"):
        client.models.upload(tmp_path / "network.onnx")
    subprocess.run(["tar", "cf", "network.tar", "network.onnx", "network.data"], cwd=tmp_path, check=True)
    network = client.models.upload(tmp_path / "network.tar")
    assert network.format == "onnx"
    job = client.jobs.create(
        model=network, steps=[{"step": "prune", "amount": {"channels": 0.5}, "round_to": 2}], export=["onnx"]
    )
    job.wait()
    assert job.status == "succeeded", (job.error, job.log())
    assert job.report()["compressed"]["parameters"] < 0.6 * job.report()["original"]["parameters"]
