"""Keys and tenants: who is let in, and that nobody learns of another's things."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from api.auth import NotStarting, create_key, prepare_access
from models.database import Database, now
from models.scopes import READ_ONLY
from models.settings import Settings
from models.tables import Key
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of

SECRET = "mp_" + "s3cret" * 7
OPEN = {("get", "/healthz"), ("get", "/readyz")}


@pytest.fixture
def closed(serve: Callable[..., Api], two_keys: tuple[str, str]) -> Api:
    return serve(open_access=False)


@pytest.mark.parametrize(
    "authorization", [None, "Bearer mp_unknown", "Bearer", "Basic bXA6eA==", "Bearer " + "x" * 5000, "mp_x"]
)
def test_nobody_is_let_in_without_a_known_key(closed: Api, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    paths = closed.client.get("/openapi.json").json()["paths"]
    calls = [(method, path) for path, methods in paths.items() for method in methods]
    assert len(calls) > 20
    for method, path in set(calls) - OPEN:
        response = closed.client.request(method, path, headers=headers)
        assert response.status_code == 401
        if method != "head":
            problem_of(response, 401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    for method, path in OPEN:
        assert closed.client.request(method, path).status_code in (200, 503)


def test_an_upload_without_a_key_is_refused_before_its_body_is_read(closed: Api, settings: Settings) -> None:
    sent = 0

    def body() -> object:
        nonlocal sent
        for _ in range(2000):
            sent += 1 << 20
            yield bytes(1 << 20)

    response = httpx.post(f"{closed.base_url}/models", content=body(), timeout=60)  # type: ignore[arg-type]
    problem_of(response, 401, "unauthorized")
    assert response.headers["connection"] == "close"
    assert sent < 200 << 20
    assert [path for path in Path(settings.blobs).rglob("*") if path.is_file()] == []


def test_a_reading_key_may_not_write(closed: Api) -> None:
    with closed.service.database.transaction() as session:
        secret = create_key(session, "a", "reader", scopes=READ_ONLY)
    with closed.with_key(secret) as client:
        assert client.get("/jobs").status_code == 200
        problem_of(client.post("/models", content=stories.a_pt2()), 403, "forbidden")
        problem_of(client.post("/jobs", json={}), 403, "forbidden")
        problem_of(client.delete("/jobs/job_x"), 403, "forbidden")


def test_a_revoked_key_is_unknown_at_once(closed: Api, two_keys: tuple[str, str]) -> None:
    with closed.with_key(two_keys[0]) as client:
        assert client.get("/jobs").status_code == 200
        with closed.service.database.transaction() as session:
            session.execute(update(Key).where(Key.tenant == "a").values(revoked_at=now(session)))
        problem_of(client.get("/jobs"), 401, "unauthorized")


def test_no_secret_is_in_the_database(settings: Settings, two_keys: tuple[str, str]) -> None:
    path = Path(settings.database_url.removeprefix("sqlite:///"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        dump = "\n".join(connection.iterdump()).encode() + path.read_bytes()
    for secret in two_keys:
        assert len(secret) >= 3 + 27  # 160 bits and more, 6 a character
        assert secret.encode() not in dump


def test_the_bootstrap_key_is_made_once(settings: Settings) -> None:
    database = Database(settings.database_url)
    first = settings.model_copy(update={"open_access": False, "bootstrap_key": SECRET})
    prepare_access(first, database)
    prepare_access(first.model_copy(update={"bootstrap_key": SECRET + "2"}), database)
    with database.read() as session:
        assert session.query(Key).count() == 1
    database.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"open_access": False}, "There is no key yet"),
        ({"open_access": True, "host": "0.0.0.0"}, "loopback"),
        ({"open_access": True, "host": "192.168.1.7"}, "loopback"),
        ({"open_access": True, "host": "example.org"}, "loopback"),
        ({"open_access": False, "bootstrap_key": "mp_" + "0" * 39}, "43 characters"),
        ({"open_access": False, "bootstrap_key": "x" * 60}, "mp_"),
    ],
)
def test_it_does_not_start_open_to_everyone_or_closed_to_everyone(
    settings: Settings, changes: dict[str, object], words: str
) -> None:
    database = Database(settings.database_url)
    with pytest.raises(NotStarting, match=words):
        prepare_access(settings.model_copy(update=changes), database)
    database.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_open_access_is_for_loopback(settings: Settings, host: str) -> None:
    database = Database(settings.database_url)
    prepare_access(settings.model_copy(update={"host": host}), database)
    database.close()


@pytest.mark.parametrize(
    "headers", [{"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "127.0.0.1.evil.example:80"}]
)
def test_open_access_does_not_serve_the_web_pages_a_browser_shows(api: Api, headers: dict[str, str]) -> None:
    problem_of(api.client.get("/jobs", headers=headers), 403, "forbidden")
    assert api.client.get("/jobs", headers={"Host": "localhost:1"}).status_code == 200
