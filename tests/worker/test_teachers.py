"""The real engine under the worker, taught by another upload: the file reaches it past the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.spec import Spec
from models.statuses import JobStatus
from models.tables import Dataset, Network
from tests.e2e.jobs import write_data, write_network
from tests.services import Valkey
from tests.worker.fleet import Fleet, until

PATIENCE = 250.0


def test_a_job_learns_from_another_upload(tmp_path: Path, sqlite_url: str, valkey: Valkey) -> None:
    with Fleet(tmp_path, sqlite_url, valkey) as fleet:
        fleet.start("device", program="worker")
        network_id = fleet.upload(Network, write_network("gru", tmp_path).read_bytes())
        teacher_id = fleet.upload(Network, write_network("gru", tmp_path, seed=4).read_bytes())
        dataset_id = fleet.upload(Dataset, write_data("gru", tmp_path).read_bytes())
        distill = {"from": teacher_id, "features": [{"layer": "bn"}]}
        steps = [{"step": "finetune", "epochs": 1, "loss": "distill", "distill": distill, "dropout": 0.1}]
        spec = Spec.model_validate({"model": network_id, "dataset": dataset_id, "steps": steps, "export": ["pt2"]})
        job_id = fleet.submit_spec(spec)
        until(lambda: _reports(fleet, job_id) or JobStatus(fleet.job(job_id).status).is_terminal, "its step", PATIENCE)
        found = _reports(fleet, job_id)
        assert found, (fleet.job(job_id).error, fleet.log(job_id))
        details = found[0]["details"]
        assert (details["teacher"], details["dropouts"]) == (teacher_id, 1)
        assert details["features"] == [{"layer": "bn", "projected": False}]


def _reports(fleet: Fleet, job_id: str) -> list[dict[str, Any]]:
    """Of the steps that have ended."""
    return [event["report"] for event in fleet.events(job_id) if event["type"] == "step"]
