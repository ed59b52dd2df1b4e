"""Two tenants: where an id can stand, what lists show, and keys of idempotency.

What is guessed in a path, a query or a body is promise P31 (`tests/promises/guessing.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.api import stories
from tests.api.serving import Api
from tests.api.two_tenants import DOCUMENT, IDS_IN_QUERIES, OPERATIONS, PREFIXES, Owned, one_of_everything

OTHERS_IN_QUERIES = {
    "after", "arch", "dry_run", "input_shape", "limit", "name", "num_classes", "overlap_hours", "status", "wait",
}  # fmt: skip
"""`after` is a cursor of a list, and a number of an event: both are within what the caller may see."""


@pytest.fixture
def tenants(serve: Callable[..., Api], two_keys: tuple[str, str]) -> Iterator[tuple[Api, httpx.Client, httpx.Client]]:
    api = serve(open_access=False, max_requests_per_second=None)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other:
        yield api, mine, other


@pytest.fixture
def owned(tenants: tuple[Api, httpx.Client, httpx.Client]) -> Owned:
    return one_of_everything(*tenants[:2])


def test_every_place_where_an_id_can_stand_is_known() -> None:
    for path, method in OPERATIONS:
        for parameter in DOCUMENT["paths"][path][method].get("parameters", []):
            if parameter["in"] == "path":
                assert parameter["name"] in {*PREFIXES, "name"}, (method, path)
            if parameter["in"] == "query":
                assert parameter["name"] in {*IDS_IN_QUERIES, *OTHERS_IN_QUERIES}, (method, path)
    spec = DOCUMENT["components"]["schemas"]["Spec"]["properties"]
    assert {name for name, field in spec.items() if "Id of" in field.get("description", "")} == {"model"}


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
