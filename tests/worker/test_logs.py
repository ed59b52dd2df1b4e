"""The log of a real api and a real worker, as JSON: who reads both can follow a request to its job's end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from models.statuses import JobStatus
from models.tables import Network, dump
from tests.api import stories
from tests.api.serving import served_by_a_process
from tests.worker.fleet import Fleet


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_can_be_followed_to_the_end_of_its_job(fleet: Fleet) -> None:
    fleet.start("device", MODELPRESS_LOG_FORMAT="json")
    settings = {
        name.removeprefix("MODELPRESS_").lower(): value
        for name, value in fleet.environment.items()
        if name.startswith("MODELPRESS_")
    }
    with (
        served_by_a_process(fleet.folder, **settings, open_access="true", tenant="t", log_format="json") as (_, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        with fleet.database.transaction() as session:
            session.get_one(Network, fleet.network_id).inspection = dump(stories.NETWORK)
        spec = {"model": fleet.network_id, "steps": [stories.PRUNE], "metadata": {"do": "finish"}}
        made = client.post("/jobs", json=spec, headers={"X-Request-Id": "submit"})
        job_id = made.json()["id"]
        fleet.wait(job_id, JobStatus.SUCCEEDED)
        shown = client.get(
            f"/jobs/{job_id}?secret=hidden", headers={"X-Request-Id": "mine", "Authorization": "Bearer x"}
        )
        assert shown.status_code == 422
        assert client.get(f"/jobs/{job_id}", headers={"X-Request-Id": "mine"}).status_code == 200
    worker = [line for line in lines(fleet.folder / "workers.log") if line.get("job_id") == job_id]
    assert any("attempt 1 begins" in line["message"] for line in worker)
    assert any("has ended" in line["message"] for line in worker)
    served = [line for line in lines(fleet.folder / "api.log") if line.get("request_id") == "mine"]
    assert [(line["method"], line["path"], line["status"]) for line in served] == [
        ("GET", f"/jobs/{job_id}", 422),
        ("GET", f"/jobs/{job_id}", 200),
    ]
    assert all(line["seconds"] > 0 for line in served)
    [queued] = [line for line in lines(fleet.folder / "api.log") if line.get("job_id") == job_id]
    assert queued["request_id"] == "submit"
    text = (fleet.folder / "api.log").read_text()
    assert "hidden" not in text
    assert "Bearer" not in text
