"""The audit trail: each change leaves a row in its own transaction, and nobody changes one."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from models import audit
from models.audit import Action, Actor
from models.database import Database, now
from models.settings import Settings
from models.tables import Audit
from tests.api import stories, tus
from tests.api.serving import Api
from tests.api.test_keys import operated


def trail(database: Database) -> list[Audit]:
    with database.read() as session:
        return list(session.scalars(select(Audit).order_by(Audit.at, Audit.id)))


def test_every_change_leaves_a_row_with_who_when_and_what(
    serve: Callable[..., Api], two_keys: tuple[str, str], settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    api = serve(open_access=False)
    with api.with_key(two_keys[0]) as client:
        client.headers["X-Request-Id"] = "story"
        job = stories.submit(api, client, dataset=stories.ready_dataset(api, client), name="S3CRET", seed=7)
        network, dataset = job["resolved_spec"]["model"], job["resolved_spec"]["data"]["dataset"]
        clone = client.post(f"/jobs/{job['id']}/clone", json={}).json()["id"]
        stories.succeed(api, stories.start(api.service.database), {"model.onnx": b"bytes"})
        for _ in range(2):
            assert client.post(f"/jobs/{clone}/cancel").status_code == 202
        artifact = f"{job['id']}/model.onnx"
        assert client.get(f"/jobs/{job['id']}/artifacts/model.onnx").content == b"bytes"
        assert client.head(f"/jobs/{job['id']}/artifacts/model.onnx").status_code == 200
        assert client.get(f"/jobs/{job['id']}/bundle").status_code == 200
        upload = tus.sent(client, stories.a_pt2(b"resumed"))
        for _ in range(2):
            resumed = client.post("/models", params={"upload": upload}).json()["id"]
        assert client.delete(f"/uploads/{upload}", headers=tus.VERSION).status_code == 204
        for path in (f"jobs/{clone}", f"jobs/{job['id']}", f"datasets/{dataset}", f"models/{network}"):
            assert client.delete(f"/{path}").status_code == 204
            assert client.delete(f"/{path}").status_code == 404
    rows = [row for row in trail(api.service.database) if row.action != "key.created"]
    assert [(row.action, row.object_id) for row in rows] == [
        ("dataset.uploaded", dataset),
        ("network.uploaded", network),
        ("job.submitted", job["id"]),
        ("job.cloned", clone),
        ("job.cancelled", clone),
        ("artifact.downloaded", artifact),
        ("bundle.downloaded", job["id"]),
        ("upload.created", upload),
        ("network.uploaded", resumed),
        ("upload.deleted", upload),
        ("job.deleted", clone),
        ("job.deleted", job["id"]),
        ("dataset.deleted", dataset),
        ("network.deleted", network),
    ]
    [key_id] = {row.key_id for row in rows}
    assert {(row.tenant, row.request_id, row.outcome) for row in rows} == {("a", "story", "done")}
    lines = operated(settings, capsys, "audit", "--object", job["id"], "--json", "--tenant", "a").splitlines()
    shown = [json.loads(line) for line in lines]
    assert [row["action"] for row in shown] == [
        "job.submitted", "artifact.downloaded", "bundle.downloaded", "job.deleted",
    ]  # fmt: skip
    assert {row["key_id"] for row in shown} == {key_id}
    assert set(shown[0]) == {"at", "tenant", "key_id", "request_id", "action", "object_id", "outcome"}
    newest = operated(settings, capsys, "audit", "--since", "1h", "--action", "job.deleted", "--limit", "1")
    assert (len(newest.splitlines()), job["id"] in newest) == (2, True)
    assert len(operated(settings, capsys, "audit", "--until", "1h").splitlines()) == 1
    for option in (f"--key={key_id}", "--request=story"):
        assert len(operated(settings, capsys, "audit", "--json", option).splitlines()) == len(rows)


def test_what_fails_leaves_no_row(api: Api) -> None:
    network = stories.ready_network(api)
    before = len(trail(api.service.database))
    refused: list[httpx.Response] = [
        api.client.post("/models", content=b"\x80\x04junk"),
        api.client.post("/jobs", json={"model": network}),
        api.client.delete("/jobs/job_x"),
        api.client.post("/jobs/job_x/cancel"),
    ]
    assert all(400 <= answer.status_code < 500 for answer in refused)
    assert len(trail(api.service.database)) == before


def test_a_row_cannot_be_changed_and_outlives_its_change_only_with_it(database: Database) -> None:
    with database.transaction() as session:
        audit.record(session, Actor("a"), Action.JOB_DELETED, "job_x", now(session))
    for statement in (update(Audit).values(tenant="b"), text("UPDATE audit SET outcome = 'x'")):
        with pytest.raises(DBAPIError, match="append-only"), database.transaction() as session:
            session.execute(statement)
    with database.transaction() as session:
        audit.record(session, Actor("a"), Action.JOB_DELETED, "job_y", now(session))
        session.rollback()
    assert [(row.tenant, row.object_id, row.outcome) for row in trail(database)] == [("a", "job_x", "done")]
