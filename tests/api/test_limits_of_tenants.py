"""Limits of single tenants: set by a command, held at once, shown to who asks; and of jobs that wait and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.__main__ import parser
from api.tenants import _OPTIONS
from models.quotas import LIMITS
from models.settings import Settings
from models.tables import Tenant
from tests.api import stories, tus
from tests.api.serving import Api
from tests.api.stories import PRUNE, problem_of
from tests.api.test_keys import operated


def test_every_limit_is_a_setting_a_column_an_option_and_is_shown(api: Api) -> None:
    assert set(LIMITS) == set(_OPTIONS)
    assert {f"max_{name}" for name in LIMITS} <= set(Settings.model_fields)
    assert set(LIMITS) == {column.name for column in Tenant.__table__.columns} - {"name"}
    assert set(LIMITS) <= set(api.client.get("/capabilities").json()["limits"])


def test_a_tenant_has_limits_of_its_own_from_the_next_request_on(
    serve: Callable[..., Api], two_keys: tuple[str, str], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    api = serve(open_access=False, max_stored_bytes=1 << 20, max_open_uploads=1)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other:
        tus.create(mine, 5)
        refused = mine.post("/uploads", headers={**tus.VERSION, "Upload-Length": "5"})
        problem_of(refused, 429, "too_many_uploads")
        words = ("tenants", "set", "a", "--open-uploads", "2", "--stored-bytes", "1MiB", "--requests-per-second", "0.5")
        assert "a" in operated(settings, capsys, *words)
        assert "request_burst" in operated(settings, capsys, "tenants", "set", "a", "--request-burst", "50")
        tus.create(mine, 5)
        limits = mine.get("/capabilities").json()["limits"]
        assert (limits["open_uploads"], limits["stored_bytes"]) == (2, 1 << 20)
        assert (limits["requests_per_second"], limits["request_burst"]) == (0.5, 50)
        assert other.get("/capabilities").json()["limits"]["open_uploads"] == 1
        listed = json.loads(operated(settings, capsys, "tenants", "list", "--json"))
        shown = {row["tenant"]: row for row in listed}
        assert set(shown) == {"a", "b", "default"}
        assert shown["a"]["used"] == {"stored_bytes": 10, "open_uploads": 2, "queued_jobs": 0, "running_jobs": 0}
        assert (shown["a"]["limits"]["open_uploads"], shown["b"]["used"]["open_uploads"]) == (2, 0)
        assert "2 of 2" in operated(settings, capsys, "tenants", "list")
        operated(settings, capsys, "tenants", "set", "a", "--open-uploads", "default")
        problem_of(mine.post("/uploads", headers={**tus.VERSION, "Upload-Length": "5"}), 429, "too_many_uploads")
    trail = operated(settings, capsys, "audit", "--action", "tenant.changed", "--json").splitlines()
    assert [json.loads(line)["object_id"] for line in trail] == ["a"] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stored-bytes", "1GB"), "512GiB"),
        (("--queued-jobs", "-1"), "0 or more"),
        (("--request-burst", "0"), "at least 1"),
        (("--requests-per-second", "nan"), "between"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    words: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["tenants", "set", "a", "=".join(words)])
    assert said in capsys.readouterr().err


def test_jobs_that_wait_are_limited_and_a_replay_is_no_other_job(
    serve: Callable[..., Api], two_keys: tuple[str, str]
) -> None:
    api = serve(open_access=False, max_queued_jobs=2)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other:
        spec = stories.a_spec(api, mine)
        key = {"Idempotency-Key": "one"}
        first = mine.post("/jobs", json=spec, headers=key)
        second = mine.post("/jobs", json=spec)
        refused = mine.post("/jobs", json=spec)
        assert "2 jobs wait" in problem_of(refused, 429, "too_many_jobs")["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        problem_of(mine.post(f"/jobs/{first.json()['id']}/clone", json={}), 429, "too_many_jobs")
        assert mine.post("/jobs", json=spec, headers=key).headers["idempotent-replayed"] == "true"
        assert mine.post("/jobs", params={"dry_run": True}, json=spec).status_code == 200
        assert stories.submit(api, other)["status"] == "queued"
        assert mine.post(f"/jobs/{second.json()['id']}/cancel").status_code == 202
        assert mine.post("/jobs", json=spec).status_code == 202


def test_jobs_submitted_at_once_never_overdraw_the_quota(serve: Callable[..., Api], postgres_url: str) -> None:
    api = serve(database_url=postgres_url, max_queued_jobs=3)
    network = stories.ready_network(api)

    def submit(_: int) -> int:
        return api.client.post("/jobs", json={"model": network, "steps": [PRUNE]}).status_code

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(submit, range(16)))
    assert (answers.count(202), answers.count(429)) == (3, 13)
