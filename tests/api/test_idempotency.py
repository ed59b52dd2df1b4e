"""Idempotency-Key: one key, one job."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest

from models.retention import IDEMPOTENCY_LIFETIME
from models.settings import Settings
from models.tables import Idempotency
from tests.api import stories
from tests.api.serving import Api, served
from tests.api.stories import problem_of

CLIENTS = 16


def post(api: Api, spec: dict[str, Any], key: str, client: httpx.Client | None = None) -> httpx.Response:
    return (client or api.client).post("/jobs", json=spec, headers={"Idempotency-Key": key})


def test_the_same_key_and_body_replay_and_another_body_is_refused(api: Api) -> None:
    spec = stories.a_spec(api)
    first = post(api, spec, "key-1")
    again = post(api, dict(reversed(spec.items())), "key-1")
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    problem_of(post(api, spec | {"seed": 1}, "key-1"), 422, "idempotency_mismatch")
    assert post(api, spec, "key-2").json()["id"] != first.json()["id"]


def test_a_replay_needs_nothing_but_the_job(api: Api) -> None:
    spec = stories.a_spec(api)
    job_id = post(api, spec, "k").json()["id"]
    row = stories.start(api.service.database)
    stories.succeed(api, row)
    assert post(api, spec, "k").json()["status"] == "succeeded"
    api.client.delete(f"/jobs/{job_id}")
    assert "deleted" in problem_of(post(api, spec, "k"), 404, "not_found")["detail"]


def test_a_key_is_free_again_after_a_day(api: Api) -> None:
    spec = stories.a_spec(api)
    first = post(api, spec, "k").json()["id"]
    with api.service.database.transaction() as session:
        row = session.get_one(Idempotency, ("default", "k"))
        row.created_at -= IDEMPOTENCY_LIFETIME + timedelta(seconds=1)
    second = post(api, spec, "k")
    assert second.status_code == 202
    assert second.json()["id"] != first
    assert post(api, spec, "k").json()["id"] == second.json()["id"]


@pytest.mark.parametrize("key", ["", "k" * 256, "ключ", "a\tb"])
def test_a_key_must_be_short_printable_ascii(api: Api, key: str) -> None:
    spec = stories.a_spec(api)
    response = api.client.post(
        "/jobs",
        json=spec,
        headers=[(b"Idempotency-Key", key.encode())],
    )
    problem = problem_of(response, 400, "bad_request")
    assert problem["errors"][0]["pointer"] == "/header/idempotency-key"


def test_a_key_in_work_is_answered_with_409_and_when_to_try_again(api: Api) -> None:
    spec = stories.a_spec(api)
    with api.service.in_flight.hold("default", "k"):
        response = post(api, spec, "k")
    problem_of(response, 409, "idempotency_in_flight")
    assert response.headers["retry-after"] == "1"
    assert post(api, spec, "k").status_code == 202


def test_a_clone_takes_a_key_too(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    answers = [
        api.client.post(f"/jobs/{job_id}/clone", json={"seed": 1}, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert answers[0].json()["id"] == answers[1].json()["id"] != job_id


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_sixteen_clients_with_one_key_make_one_job(
    kind: str, processes: int, settings: Settings, request: pytest.FixtureRequest
) -> None:
    """`processes` services on one database stand for as many processes: they share nothing else."""
    if kind == "postgresql":
        settings = settings.model_copy(update={"database_url": request.getfixturevalue("postgres_url")})
    with ExitStack() as running:
        apis = [running.enter_context(served(settings)) for _ in range(processes)]
        spec = stories.a_spec(apis[0])

        def until_accepted(number: int) -> str:
            api = apis[number % processes]
            with httpx.Client(base_url=api.base_url, timeout=60) as client:
                while (response := post(api, spec, "one", client)).status_code == 409:
                    problem_of(response, 409, "idempotency_in_flight")
            assert response.status_code == 202, response.text
            return str(response.json()["id"])

        with ThreadPoolExecutor(CLIENTS) as clients:
            ids = set(clients.map(until_accepted, range(CLIENTS)))
        assert len(ids) == 1
        assert [job["id"] for job in apis[0].client.get("/jobs").json()["data"]] == list(ids)


def test_keys_of_two_tenants_have_nothing_to_do_with_each_other(
    serve: Callable[..., Api], two_keys: tuple[str, str]
) -> None:
    api = serve(open_access=False)
    ids = set()
    for secret in two_keys:
        with api.with_key(secret) as client:
            spec = stories.a_spec(api, client)
            ids.add(post(api, spec, "same", client).json()["id"])
            ids.add(post(api, spec, "same", client).json()["id"])
    assert len(ids) == 2
