"""Jobs over HTTP: submit, show, list, wait, cancel, clone, delete."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from models.events import PhaseEvent, ProgressEvent
from models.settings import Settings
from models.statuses import Phase
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import PRUNE, problem_of

JOB_FIELDS = {
    "id", "name", "status", "phase", "attempt", "spec", "resolved_spec", "progress", "queue_position", "error",
    "created_at", "started_at", "finished_at", "expires_at", "metadata", "urls", "webhook",
}  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, settings: Settings, serve: Callable[..., Api]) -> Api:
    """The service on SQLite, then on PostgreSQL."""
    if request.param == "sqlite":
        return serve()
    return serve(database_url=request.getfixturevalue("postgres_url"))


def test_a_submitted_job_is_answered_whole_with_its_place_and_its_spec_resolved(either: Api) -> None:
    dataset = stories.ready_dataset(either)
    spec = stories.a_spec(either, dataset=dataset, name="small-one", metadata={"team": "edge"})
    del spec["steps"]
    response = either.client.post("/jobs", json=spec | {"preset": "balanced"})
    assert response.status_code == 202
    job = response.json()
    assert set(job) == JOB_FIELDS
    assert response.headers["location"] == f"/jobs/{job['id']}" == job["urls"]["self"]
    assert (job["status"], job["attempt"], job["queue_position"]) == ("queued", 0, 1)
    assert job["metadata"] == {"team": "edge"}
    assert [step["step"] for step in job["resolved_spec"]["steps"]] == ["prune", "finetune", "quantize"]
    assert job["resolved_spec"]["data"]["task"] == "classification"
    assert job["resolved_spec"]["steps"][1]["loss"] == "both"
    assert job["spec"] == {
        "model": spec["model"],
        "name": "small-one",
        "data": {"dataset": dataset},
        "preset": "balanced",
        "metadata": {"team": "edge"},
    }
    assert job["progress"]["step_count"] == 3
    assert either.client.get(job["urls"]["self"]).json() == job


def test_a_job_is_shown_as_a_worker_moves_it(either: Api) -> None:
    job_id = stories.submit(either)["id"]
    database = either.service.database
    row = stories.start(database)
    stories.say(database, row, PhaseEvent(phase=Phase.PRUNING, step_index=0, step_count=1))
    stories.say(database, row, ProgressEvent(percent=42.0, eta_seconds=100.0))
    response = either.client.get(f"/jobs/{job_id}")
    job = response.json()
    assert (job["status"], job["phase"], job["attempt"], job["queue_position"]) == ("running", "pruning", 1, None)
    assert job["progress"]["percent"] == 42.0
    assert job["progress"]["step_index"] == 0
    assert response.headers["retry-after"] == "5"
    stories.fail(database, row)
    response = either.client.get(f"/jobs/{job_id}")
    assert response.json()["status"] == "failed"
    assert response.json()["error"]["code"] == "nan_loss"
    assert response.json()["error"]["hint"]
    assert "retry-after" not in response.headers


def test_a_list_goes_on_behind_its_cursor_without_gaps_when_jobs_come_in_between(either: Api) -> None:
    network = stories.ready_network(either)

    def submit() -> str:
        response = either.client.post("/jobs", json={"model": network, "steps": [PRUNE]})
        return str(response.json()["id"])

    old = [submit() for _ in range(5)]
    first = either.client.get("/jobs", params={"limit": 2}).json()
    newer = submit()
    second = either.client.get("/jobs", params={"limit": 2, "after": first["next_cursor"]}).json()
    third = either.client.get("/jobs", params={"limit": 2, "after": second["next_cursor"]}).json()
    seen = [job["id"] for page in (first, second, third) for job in page["data"]]
    assert seen == sorted(old, reverse=True)
    assert [page["has_more"] for page in (first, second, third)] == [True, True, False]
    assert third["next_cursor"] is None
    assert [job["queue_position"] for job in first["data"]] == [5, 4]
    everything = either.client.get("/jobs").json()["data"]
    assert everything[0]["id"] == newer
    assert everything[0] == either.client.get(f"/jobs/{newer}").json()


def test_a_list_can_be_narrowed_to_statuses(api: Api) -> None:
    first, second = stories.submit(api)["id"], stories.submit(api)["id"]
    assert stories.start(api.service.database).id == first
    listed = api.client.get("/jobs", params={"status": "running"}).json()["data"]
    assert [job["id"] for job in listed] == [first]
    listed = api.client.get("/jobs", params=[("status", "running"), ("status", "queued")]).json()["data"]
    assert [job["id"] for job in listed] == [second, first]
    problem = problem_of(api.client.get("/jobs", params={"status": "' OR 1=1"}), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/query/status/0"
    assert "succeeded" in problem["errors"][0]["allowed"]


@pytest.mark.parametrize("limit", ["0", "-1", "1000000000", "x"])
def test_a_limit_out_of_bounds_is_refused_with_its_name(api: Api, limit: str) -> None:
    problem = problem_of(api.client.get("/jobs", params={"limit": limit}), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/query/limit"


def test_a_cursor_that_was_tampered_with_is_a_bad_request(api: Api) -> None:
    for _ in range(2):
        stories.submit(api)
    cursor = api.client.get("/jobs", params={"limit": 1}).json()["next_cursor"]
    changed = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    for bad in (changed, cursor[:-2], "é", "", "a" * 150, "../../etc/passwd"):
        problem_of(api.client.get("/jobs", params={"after": bad}), 400, "bad_request")
    of_jobs = api.client.get("/models", params={"after": cursor})
    problem_of(of_jobs, 400, "bad_request")


def test_an_etag_that_still_holds_is_answered_with_304(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    first = api.client.get(f"/jobs/{job_id}")
    etag = first.headers["etag"]
    again = api.client.get(f"/jobs/{job_id}", headers={"If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    stories.start(api.service.database)
    changed = api.client.get(f"/jobs/{job_id}", headers={"If-None-Match": etag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != etag


def test_a_long_poll_returns_with_the_change_and_not_before(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    etag = api.client.get(f"/jobs/{job_id}").headers["etag"]
    starting = threading.Timer(1.0, stories.start, args=[api.service.database])
    started = time.monotonic()
    starting.start()
    answer = api.client.get(f"/jobs/{job_id}", params={"wait": 50}, headers={"If-None-Match": etag})
    waited = time.monotonic() - started
    assert answer.json()["status"] == "running"
    assert 0.9 < waited < 40


def test_a_long_poll_without_a_change_ends_after_its_time_and_an_ended_job_is_answered_at_once(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    etag = api.client.get(f"/jobs/{job_id}").headers["etag"]
    answer = api.client.get(f"/jobs/{job_id}", params={"wait": 1}, headers={"If-None-Match": etag})
    assert answer.status_code == 304
    assert api.client.get(f"/jobs/{job_id}", params={"wait": 1}).status_code == 200
    api.client.post(f"/jobs/{job_id}/cancel")
    started = time.monotonic()
    assert api.client.get(f"/jobs/{job_id}", params={"wait": 60}).json()["status"] == "cancelled"
    assert time.monotonic() - started < 30
    problem_of(api.client.get(f"/jobs/{job_id}", params={"wait": 61}), 422, "invalid_request")


def test_a_queued_job_is_cancelled_at_once_and_cancelling_again_says_the_same(either: Api) -> None:
    job_id = stories.submit(either)["id"]
    for _ in range(2):
        response = either.client.post(f"/jobs/{job_id}/cancel")
        assert response.status_code == 202
        assert response.json()["status"] == "cancelled"
        assert response.json()["finished_at"]


def test_a_running_job_is_asked_to_stop(either: Api) -> None:
    job_id = stories.submit(either)["id"]
    stories.start(either.service.database)
    for _ in range(2):
        response = either.client.post(f"/jobs/{job_id}/cancel")
        assert (response.status_code, response.json()["status"]) == (202, "cancelling")


def test_an_ended_job_cannot_be_cancelled_and_says_how_it_ended(api: Api) -> None:
    for end, status in ((stories.fail, "failed"), (lambda _, job: stories.succeed(api, job), "succeeded")):
        job_id = stories.submit(api)["id"]
        end(api.service.database, stories.start(api.service.database))
        problem = problem_of(api.client.post(f"/jobs/{job_id}/cancel"), 409, "already_finished")
        assert problem["where"] == status
        assert status in problem["detail"]


def test_a_clone_is_the_same_spec_with_the_overrides_merged_in(either: Api) -> None:
    dataset = stories.ready_dataset(either)
    data = {"dataset": dataset, "transform": {"mean": [0.5], "std": [0.25]}}
    original = stories.submit(either, data=data, name="one", seed=3)
    overrides = {"name": None, "seed": 4, "data": {"transform": {"mean": [0.1]}}, "metadata": {"of": "one"}}
    response = either.client.post(f"/jobs/{original['id']}/clone", json=overrides)
    assert response.status_code == 202, response.text
    clone = response.json()
    assert response.headers["location"] == clone["urls"]["self"] != original["urls"]["self"]
    assert (clone["name"], clone["resolved_spec"]["seed"], clone["metadata"]) == (None, 4, {"of": "one"})
    assert clone["resolved_spec"]["steps"] == original["resolved_spec"]["steps"]
    transform = clone["resolved_spec"]["data"]["transform"]
    assert (transform["mean"], transform["std"]) == ([0.1], [0.25])


def test_a_clone_may_put_a_preset_in_place_of_steps_and_data_in_place_of_data(api: Api) -> None:
    first, second = stories.ready_dataset(api), stories.ready_dataset(api)
    original = stories.submit(api, dataset=first)
    clone = api.client.post(f"/jobs/{original['id']}/clone", json={"preset": "int8", "dataset": second}).json()
    assert [step["step"] for step in clone["resolved_spec"]["steps"]] == ["quantize"]
    assert clone["resolved_spec"]["data"]["dataset"] == second
    same = api.client.post(f"/jobs/{clone['id']}/clone", json={}).json()
    assert same["resolved_spec"] == clone["resolved_spec"]
    wrong = api.client.post(f"/jobs/{original['id']}/clone", json={"stepz": []})
    assert problem_of(wrong, 422, "invalid_spec")["errors"][0]["pointer"] == "/stepz"


def test_a_job_is_deleted_once_it_has_ended_and_then_its_network_can_go(either: Api) -> None:
    job = stories.submit(either)
    network = job["resolved_spec"]["model"]
    problem_of(either.client.delete(f"/jobs/{job['id']}"), 409, "in_use")
    row = stories.start(either.service.database)
    stories.write_log(either.service.database, row, "one line\n")
    problem_of(either.client.delete(f"/models/{network}"), 409, "in_use")
    stories.succeed(either, row, {"a.onnx": b"bytes"})
    assert either.client.delete(f"/jobs/{job['id']}").status_code == 204
    problem_of(either.client.get(f"/jobs/{job['id']}"), 404, "not_found")
    problem_of(either.client.delete(f"/jobs/{job['id']}"), 404, "not_found")
    assert either.client.delete(f"/models/{network}").status_code == 204
    problem_of(either.client.get(f"/models/{network}"), 404, "not_found")


def test_a_dry_run_shows_what_would_be_queued_and_queues_nothing(api: Api) -> None:
    dataset = stories.ready_dataset(api)
    spec = stories.a_spec(api, dataset=dataset)
    spec["steps"] = [PRUNE, {"step": "finetune", "epochs": 1}, {"step": "quantize"}]
    response = api.client.post("/jobs", params={"dry_run": "true"}, json=spec)
    assert response.status_code == 200
    shown = response.json()
    assert shown["resolved_spec"]["steps"][1]["loss"] == "both"
    [group] = shown["groups"]
    assert (group["id"], group["units"], group["layers"], group["skipped"]) == ("g0", 32, ["conv1"], False)
    assert group["units_left"] == {"least": 8, "most": 32}
    pruned, finetuned, quantized = shown["steps"]
    assert pruned["macs"] == {"least": 280_000, "most": 1_000_000, "asked": 500_000}
    assert pruned["parameters"] == {"least": 2_800, "most": 10_000, "asked": None}
    assert finetuned["macs"] == {"least": 280_000, "most": 1_000_000, "asked": None}
    assert quantized["bytes"] == {"least": 2_800, "most": 40_000, "asked": None}
    assert "location" not in response.headers
    assert api.client.get("/jobs").json()["data"] == []


def test_a_dry_run_is_exact_where_amounts_fix_the_counts(api: Api) -> None:
    prune = PRUNE | {"scope": "layer", "amount": {"channels": 0.5}}
    shown = api.client.post("/jobs", params={"dry_run": "true"}, json=stories.a_spec(api) | {"steps": [prune]}).json()
    assert shown["groups"][0]["units_left"] == {"least": 16, "most": 16}
    assert shown["steps"] == [
        {
            "index": 0,
            "step": "prune",
            "parameters": {"least": 5_200, "most": 5_200, "asked": None},
            "macs": {"least": 520_000, "most": 520_000, "asked": None},
            "bytes": {"least": 20_800, "most": 20_800, "asked": None},
        }
    ]


def test_a_dry_run_refuses_what_a_submission_would(api: Api) -> None:
    spec = stories.a_spec(api) | {"steps": [{"step": "quantize"}]}
    for params in ({}, {"dry_run": "true"}):
        problem = problem_of(api.client.post("/jobs", params=params, json=spec), 422, "invalid_spec")
        assert problem["errors"][0]["pointer"] == "/steps/0"
        assert "calibrate" in problem["errors"][0]["message"]


def test_an_ended_job_says_when_it_will_be_deleted(serve: Callable[..., Api]) -> None:
    api = serve(keep_jobs_days=2.0)
    job = stories.submit(api)
    assert job["expires_at"] is None
    stories.succeed(api, stories.start(api.service.database))
    shown = api.client.get(f"/jobs/{job['id']}").json()
    lifetime = datetime.fromisoformat(shown["expires_at"]) - datetime.fromisoformat(shown["finished_at"])
    assert lifetime == timedelta(days=2)
    [last] = [event for event in api.client.get(f"/jobs/{job['id']}/events").json()["data"] if event["data"].get("job")]
    assert last["data"]["job"]["expires_at"] == shown["expires_at"]
    assert serve().client.get(f"/jobs/{job['id']}").json()["expires_at"] is None
