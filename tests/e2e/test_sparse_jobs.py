"""A whole job that ends in a packed file: what the report says of it, and what its owner loads."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import modelpress
from models.report import Report
from tests.e2e.jobs import run_engine, write_data, write_network

STEPS: list[dict[str, Any]] = [
    {"step": "sparsify", "pattern": {"n_of_m": [2, 4]}, "layers": [{"match": "fc", "skip": True}]},
    {
        "step": "sparsify",
        "amount": 0.8,
        "criterion": "taylor",
        "samples": 32,
        "layers": [{"match": "fc", "amount": 0.5}],
    },
    {"step": "finetune", "epochs": 2},
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sparse")
    asked = {
        "network": {"path": str(write_network("lstm", folder))},
        "dataset": {"path": str(write_data("lstm", folder))},
        "folder": str(folder / "job"),
        "spec": {"model": "net", "dataset": "dat", "steps": STEPS, "export": ["safetensors"]},
    }
    status, events, log = run_engine(asked, folder)
    assert status == 0, log
    return folder, asked, events


def downloaded(folder: Path) -> Path:
    """The artifacts as `modelpress fetch` leaves them."""
    artifacts = folder / "job/artifacts"
    digest = hashlib.sha256((artifacts / "model.safetensors").read_bytes()).hexdigest()
    rows = [{"name": "model.safetensors", "sha256": digest}]
    (artifacts / "artifacts.json").write_text(json.dumps({"artifacts": rows}))
    return artifacts


def test_the_report_is_about_the_packed_file_and_claims_no_speed(finished: tuple[Path, Any, Any]) -> None:
    folder, _, _ = finished
    artifacts = folder / "job/artifacts"
    report = Report.model_validate_json((artifacts / "report.json").read_bytes())
    (pair,) = report.files
    assert pair.format == "safetensors"
    assert pair.compressed.file_size_bytes == (artifacts / "model.safetensors").stat().st_size
    assert pair.original.file_size_bytes is not None
    assert pair.compressed.file_size_bytes < 0.6 * pair.original.file_size_bytes
    assert pair.compressed.nonzero_parameters < 0.4 * pair.original.nonzero_parameters
    assert pair.compressed.parameters == pair.original.parameters
    assert pair.compressed.macs == pair.original.macs
    for side in (pair.original, pair.compressed):
        assert side.latency_ms is not None
        assert side.latency_ms.runtime.endswith(", unpacked")
    (verified,) = report.verification
    assert (verified.reloaded, verified.max_abs_diff_vs_engine) == (True, 0.0)
    rows = {row.name: row.sparsity for row in report.layers}
    assert rows["fc"] == pytest.approx(0.5)
    assert rows["lstm"] == pytest.approx(0.8, abs=0.01)
    assert rows["embedding"] == 0.0
    first, second, _ = report.steps
    assert first.details["reached"] == 0.5
    assert second.details["gradients"] == {"loss": "task", "samples": 32}
    assert first.after.nonzero_parameters > second.after.nonzero_parameters


def test_its_owner_loads_a_network_that_runs_and_learns(finished: tuple[Path, Any, Any]) -> None:
    folder, _, events = finished
    network = modelpress.load(downloaded(folder))
    last = next(event for event in reversed(events) if event["type"] == "checkpoint")
    trained = load_file(folder / "job" / last["path"])
    for name, value in network.named_parameters():
        assert torch.equal(value, trained[f"state.{name}"]), name
    weight = network.get_parameter("lstm.weight_hh_l0")
    groups = (weight == 0).reshape(len(weight), -1, 4).sum(-1)
    assert int(groups.min()) >= 2
    tokens = torch.randint(1, 40, (3, 10))
    before = network(tokens)
    assert before.shape == (3, 5)
    network.train()
    torch.autograd.backward(network(tokens).sum())
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert not torch.equal(network.eval()(tokens), before)


def test_a_changed_file_is_not_loaded(finished: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, _, _ = finished
    for name in ("model.safetensors", "artifacts.json"):
        (tmp_path / name).write_bytes((downloaded(folder) / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes() + b"\0")
    with pytest.raises(modelpress.DownloadError, match=re.escape("is missing or is not the file the job gave")):
        modelpress.load(tmp_path)
