"""The two-tenant run: over every operation of the OpenAPI, what is another tenant's answers as what never was.

Where an id can stand is read from the OpenAPI: a path, query or field that this file does not know fails here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from api.app import create_app
from models.ids import new_id
from models.settings import Settings
from tests.api import stories, tus
from tests.api.serving import Api
from tests.api.stories import problem_of

DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
WITH_AN_ID = [(path, method) for path, method in OPERATIONS if "{" in path]
PREFIXES = {"model_id": "net", "dataset_id": "dat", "job_id": "job", "upload_id": "upl"}
"""Parameters of paths that are ids, and how those begin. `name` is that of an artifact, inside a job."""
IDS_IN_QUERIES = {"upload": "upl"}
OTHERS_IN_QUERIES = {
    "after", "arch", "dry_run", "input_shape", "limit", "name", "num_classes", "overlap_hours", "status", "wait",
}  # fmt: skip
"""`after` is a cursor of a list, and a number of an event: both are within what the caller may see."""
VARIANTS: tuple[Mapping[str, str], ...] = (
    {},
    {"Accept": "text/event-stream"},
    {"Accept": "text/html"},
    {"Range": "bytes=0-0"},
    {"If-None-Match": "*"},
    {"Idempotency-Key": "shared"},
)
NEVER_THE_SAME = {"date", "x-request-id"}


@dataclass(frozen=True)
class Owned:
    """What tenant `a` has; `jobs` by status."""

    ids: Mapping[str, str]
    jobs: Mapping[str, str]

    @property
    def secrets(self) -> list[str]:
        return [*self.ids.values(), *self.jobs.values()]


@pytest.fixture
def tenants(serve: Callable[..., Api], two_keys: tuple[str, str]) -> Iterator[tuple[Api, httpx.Client, httpx.Client]]:
    api = serve(open_access=False, max_requests_per_second=None)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other:
        yield api, mine, other


@pytest.fixture
def owned(tenants: tuple[Api, httpx.Client, httpx.Client]) -> Owned:
    api, mine, _ = tenants
    jobs = {}
    dataset = stories.ready_dataset(api, mine)
    job = stories.submit(api, mine, dataset=dataset, name="private-name")
    jobs["succeeded"] = job["id"]
    stories.succeed(api, stories.start(api.service.database), {"model.onnx": b"private bytes"})
    jobs["running"] = stories.submit(api, mine)["id"]
    stories.start(api.service.database)
    spec = stories.a_spec(api, mine)
    jobs["queued"] = mine.post("/jobs", json=spec, headers={"Idempotency-Key": "shared"}).json()["id"]
    ids = {
        "model_id": job["resolved_spec"]["model"],
        "dataset_id": dataset,
        "upload_id": tus.sent(mine, b"private"),
        "name": "model.onnx",
    }
    return Owned(ids, jobs)


def seen(response: httpx.Response, asked: Mapping[str, str]) -> tuple[Any, ...]:
    """An answer without what differs between two answers to one question: the time, its own id, the ids asked for."""
    headers = {name: value for name, value in response.headers.items() if name not in NEVER_THE_SAME}
    text = response.text.replace(response.headers["x-request-id"], "REQUEST")
    for name, value in asked.items():
        text = text.replace(value, name)
        headers = {header: said.replace(value, name) for header, said in headers.items()}
    return response.status_code, headers, text


def unknown(ids: Mapping[str, str]) -> dict[str, str]:
    """Ids of the same shape that nobody has."""
    return {name: new_id(PREFIXES[name]) if name in PREFIXES else value for name, value in ids.items()}


def malformed(ids: Mapping[str, str]) -> dict[str, str]:
    return {name: f"{value}0" if name in PREFIXES else value for name, value in ids.items()}


def request_of(method: str, path: str) -> dict[str, Any]:
    if method == "patch":
        return {"content": b"x", "headers": {**tus.PART, "Upload-Offset": "7"}}
    return {"headers": tus.VERSION, **({"json": {}} if method == "post" else {})}


def test_every_place_where_an_id_can_stand_is_known() -> None:
    for path, method in OPERATIONS:
        for parameter in DOCUMENT["paths"][path][method].get("parameters", []):
            if parameter["in"] == "path":
                assert parameter["name"] in {*PREFIXES, "name"}, (method, path)
            if parameter["in"] == "query":
                assert parameter["name"] in {*IDS_IN_QUERIES, *OTHERS_IN_QUERIES}, (method, path)
    spec = DOCUMENT["components"]["schemas"]["Spec"]["properties"]
    assert {name for name, field in spec.items() if "Id of" in field.get("description", "")} == {"model"}


def test_what_is_another_tenants_is_what_never_was(
    tenants: tuple[Api, httpx.Client, httpx.Client], owned: Owned
) -> None:
    _, mine, other = tenants
    before = _everything(mine, owned)
    for path, method in WITH_AN_ID:
        for status, job in owned.jobs.items():
            ids = {name: value for name, value in {**owned.ids, "job_id": job}.items() if f"{{{name}}}" in path}
            for variant in VARIANTS if status == "succeeded" else ({},):
                request = request_of(method, path)
                request["headers"] = {**request["headers"], **variant}
                answers = [
                    seen(other.request(method.upper(), path.format(**asked), **request), asked)
                    for asked in (ids, unknown(ids), malformed(ids))
                ]
                assert answers[0] == answers[1] == answers[2], (method, path, variant)
                assert answers[0][0] == 404, (method, path, variant)
            if "{job_id}" not in path:
                break
    assert _everything(mine, owned) == before


def _everything(client: httpx.Client, owned: Owned) -> list[tuple[Any, ...]]:
    """What its owner sees."""
    found = []
    for path, method in WITH_AN_ID:
        for job in owned.jobs.values():
            if method in ("get", "head"):
                response = client.request(method, path.format(**owned.ids, job_id=job), headers=tus.VERSION)
                found.append(seen(response, {}))
    return found


def test_an_id_in_a_query_or_a_body_is_as_unknown(
    tenants: tuple[Api, httpx.Client, httpx.Client], owned: Owned
) -> None:
    api, _, other = tenants
    for path, method in OPERATIONS:
        for parameter in DOCUMENT["paths"][path][method].get("parameters", []):
            if parameter["in"] == "query" and (prefix := IDS_IN_QUERIES.get(parameter["name"])):
                answers = [
                    seen(other.request(method.upper(), path, params={parameter["name"]: asked}), {"id": asked})
                    for asked in (owned.ids["upload_id"], new_id(prefix))
                ]
                assert answers[0] == answers[1]
                assert answers[0][0] == 404
    own = stories.ready_network(api, other)
    train = {"step": "finetune", "distill": {"from": "NET"}}
    for place in ("model", "dataset", "distill"):
        answers = []
        for ids in (owned.ids, unknown(owned.ids)):
            spec: dict[str, Any] = {"model": own, "steps": [stories.PRUNE]}
            if place == "distill":
                spec |= {"dataset": stories.ready_dataset(api, other)}
                spec["steps"] = [train | {"distill": {"from": ids["model_id"]}}]
            else:
                spec[place] = ids[f"{place}_id"]
            response = other.post("/jobs", json=spec, headers={"Idempotency-Key": "shared"})
            problem_of(response, 404, "not_found")
            answers.append(seen(response, ids))
        assert answers[0] == answers[1], place
    assert other.get("/jobs").json()["data"] == []


def test_no_list_shows_another_tenant_anything(tenants: tuple[Api, httpx.Client, httpx.Client], owned: Owned) -> None:
    _, mine, other = tenants
    cursor = mine.get("/jobs", params={"limit": 1}).json()["next_cursor"]
    digest = mine.get(f"/models/{owned.ids['model_id']}").json()["sha256"]
    private = [value for value in [*owned.secrets, digest, "private"] if value != "model.onnx"]
    lists = 0
    for path, method in OPERATIONS:
        if method != "get" or "{" in path:
            continue
        response = other.get(path)
        assert not [value for value in private if value in response.text], path
        if isinstance(shown := response.json() if "json" in response.headers["content-type"] else None, dict):
            lists += shown.get("data") == []
    assert lists >= 3
    assert other.get("/jobs", params={"after": cursor}).json()["data"] == []


def test_the_same_idempotency_key_is_another_key(tenants: tuple[Api, httpx.Client, httpx.Client], owned: Owned) -> None:
    api, _, other = tenants
    spec = stories.a_spec(api, other)
    first, fresh = (
        other.post("/jobs", json=spec, headers={"Idempotency-Key": key}) for key in ("shared", "never used")
    )
    assert first.status_code == fresh.status_code == 202
    assert set(first.headers) == set(fresh.headers)
    assert first.json()["id"] not in owned.secrets
