"""What a NaN in the middle of training leaves of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from tests.e2e.jobs import run_engine, write_data, write_network

PRUNE: dict[str, Any] = {"step": "prune", "amount": {"channels": 0.3}, "round_to": 2}


def request(folder: Path, steps: list[dict[str, Any]], name: str = "gru") -> dict[str, Any]:
    return {
        "network": {"path": str(write_network(name, folder))},
        "dataset": {"path": str(write_data(name, folder))},
        "folder": str(folder / "job"),
        "spec": {"model": "net", "dataset": "dat", "steps": steps, "export": ["pt2"]},
    }


def test_after_a_nan_the_finished_steps_are_there_to_go_on_from(tmp_path: Path) -> None:
    asked = request(tmp_path, [PRUNE, {"step": "finetune", "epochs": 2, "batch_size": 8}])
    arrays = dict(np.load(asked["dataset"]["path"]))
    signal = next(name for name in arrays if name != "y")
    arrays["split"] = np.array(["train"] * 200 + ["val"] * 20 + ["test"] * 20)
    good = asked["dataset"]["path"]
    np.savez(good, **arrays)
    arrays[signal][77] *= 1e38  # of the training samples alone
    np.savez(tmp_path / "bad.npz", **arrays)
    status, events, _ = run_engine(
        asked | {"dataset": {"path": str(tmp_path / "bad.npz")}, "checkpoint_seconds": 1e-6}, tmp_path
    )
    assert status == 1
    error = events[-1]["error"]
    assert (error["code"], error["phase"]) == ("nan_loss", "finetuning")
    assert "Lower the learning rate" in error["hint"]
    checkpoints = [event for event in events if event["type"] == "checkpoint"]
    inside = [event for event in checkpoints if event["epoch"] is not None]
    assert inside
    newest = load_file(tmp_path / "job" / inside[-1]["path"])
    assert not any(bool(value.isnan().any()) for value in newest.values() if value.is_floating_point())
    steps = asked["spec"]["steps"]
    cured = asked | {
        "dataset": {"path": str(tmp_path / "bad.npz")},
        "spec": asked["spec"] | {"steps": [steps[0], steps[1] | {"loss": "task", "epochs": 1}]},
        "checkpoints": [str(tmp_path / "job" / checkpoints[0]["path"])],
        "folder": str(tmp_path / "cured"),
    }
    _, again, _ = run_engine(cured, tmp_path)
    assert next(event["report"]["resumed"] for event in again if event["type"] == "step")
    assert torch.isfinite(newest["training.epoch.loss_sum"])
