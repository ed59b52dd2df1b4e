"""Webhooks over HTTP: what is refused at submit, what is shown, sending again, secrets."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from sqlalchemy import select
from standardwebhooks import Webhook

from api.auth import create_key
from api.services import webhooks as services
from models import webhook_urls
from models.database import now
from models.scopes import READ_ONLY
from models.settings import Settings
from models.tables import Audit
from models.webhook_urls import SystemLookup
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of
from tests.receivers import Receiver, answering
from worker.webhooks import Courier

MASTER = "a deployment's master secret, 32+"
OPEN = {"webhook_secret": MASTER, "webhook_http": True, "webhook_allowed": ("127.0.0.1/32",)}


@pytest.fixture
def hooked(serve: Callable[..., Api]) -> Api:
    return serve(**OPEN)


def cancelled(api: Api, url: str) -> str:
    job = stories.submit(api, webhook={"url": url})
    assert job["webhook"] is None
    job_id: str = api.client.post(f"/jobs/{job['id']}/cancel").json()["id"]
    return job_id


def deliver(api: Api, after: float = 0) -> None:
    later = timedelta(seconds=after)
    service = api.service
    Courier(service.database, service.settings, threading.Event(), clock=lambda session: now(session) + later).deliver()


def test_without_a_master_secret_webhooks_are_refused_with_the_name_of_the_setting(api: Api) -> None:
    answer = api.client.post("/jobs", json=stories.a_spec(api, webhook={"url": "https://hooks.example/"}))
    problem = problem_of(answer, 422, "unsupported_here")
    assert problem["errors"][0]["pointer"] == "/webhook"
    assert "MODELPRESS_WEBHOOK_SECRET" in problem["detail"]
    assert api.client.get("/capabilities").json()["webhooks"] is None
    problem_of(api.client.get("/webhooks/secrets"), 422, "unsupported_here")
    problem_of(api.client.post("/webhooks/secrets"), 422, "unsupported_here")


def test_dead_name_servers_of_one_tenant_cost_no_other_one_a_submit(
    serve: Callable[..., Api], two_keys: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, asked, really = threading.Event(), list[str](), socket.getaddrinfo

    def look_up(host: str, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        if host == "dead.example":
            alive.wait(60)
        return really("93.184.215.14" if host.endswith(".example") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(webhook_urls, "LOOKUP_SECONDS", 0.1)
    monkeypatch.setattr(services, "system_lookup", SystemLookup())
    api = serve(open_access=False, max_queued_jobs=1, webhook_secret=MASTER)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other:
        spec, others = stories.a_spec(api, mine), stories.a_spec(api, other)

        def submitted(client: httpx.Client, spec: dict[str, Any], host: str, query: str = "") -> httpx.Response:
            return client.post(f"/jobs{query}", json=spec | {"webhook": {"url": f"https://{host}.example/"}})

        for _ in range(webhook_urls.LOOKUPS_OF_A_TENANT):
            problem_of(submitted(mine, spec, "dead", "?dry_run=true"), 422, "invalid_spec")
        for host in ("dead", "alive"):
            refused = submitted(mine, spec, host)
            problem_of(refused, 429, "rate_limited")
            assert refused.headers["retry-after"] == "1"
        assert submitted(other, others, "alive").status_code == 202
        problem_of(submitted(other, others, "never-asked"), 429, "too_many_jobs")
        assert "never-asked.example" not in asked

        monkeypatch.setattr(webhook_urls, "LOOKUPS", webhook_urls.LOOKUPS_OF_A_TENANT)
        refused = submitted(other, others, "alive", "?dry_run=true")
        problem_of(refused, 503, "unavailable")
        assert refused.headers["retry-after"] == "5"
        alive.set()


def test_from_the_end_of_a_job_to_a_verified_message(hooked: Api) -> None:
    with Receiver() as receiver:
        job_id = cancelled(hooked, receiver.url)
        assert hooked.client.get(f"/jobs/{job_id}").json()["webhook"] == {
            "status": "pending",
            "attempts": 0,
            "next_attempt_at": hooked.client.get(f"/jobs/{job_id}/webhook").json()["created_at"],
            "problem": None,
        }
        deliver(hooked)
        [received] = receiver.received
    [secret] = hooked.client.get("/webhooks/secrets").json()["data"]
    assert secret["expires_at"] is None
    body = Webhook(secret["secret"]).verify(received.body, received.headers)
    job = hooked.client.get(f"/jobs/{job_id}").json()
    assert body["type"] == "job.cancelled"
    assert body["timestamp"] == job["finished_at"]
    assert body["data"] == {
        name: job[name]
        for name in ("id", "name", "status", "metadata", "error", "created_at", "started_at", "finished_at")
    } | {"model": job["resolved_spec"]["model"]}
    assert job["webhook"] == {"status": "delivered", "attempts": 1, "next_attempt_at": None, "problem": None}
    [listed] = hooked.client.get("/jobs").json()["data"]
    assert listed["webhook"] == job["webhook"]
    last = hooked.client.get(f"/jobs/{job_id}/events").json()["data"][-1]
    assert last["data"]["job"]["webhook"] == job["webhook"]
    message = hooked.client.get(f"/jobs/{job_id}/webhook").json()
    assert (message["id"], message["url"], message["attempts"][0]["status_code"]) == (received.id, receiver.url, 204)
    assert hooked.client.get("/webhooks/messages").json()["data"] == [message]


def test_success_and_failure_are_told_with_what_came_of_them(hooked: Api) -> None:
    with Receiver() as receiver:
        for end in (stories.succeed, lambda api, job: stories.fail(api.service.database, job)):
            stories.submit(hooked, webhook={"url": receiver.url}, metadata={"team": "edge"}, name="r18")
            end(hooked, stories.start(hooked.service.database))
            deliver(hooked)
        succeeded, failed = (received.json for received in receiver.received)
    assert (succeeded["type"], succeeded["data"]["error"]) == ("job.succeeded", None)
    assert (failed["type"], failed["data"]["error"]["code"]) == ("job.failed", "nan_loss")
    assert failed["data"]["metadata"] == {"team": "edge"}


def test_a_receiver_that_is_gone_is_shown_and_its_url_refused_until_somebody_asks_again(hooked: Api) -> None:
    with Receiver(410) as receiver:
        job_id = cancelled(hooked, receiver.url)
        waiting = stories.submit(hooked, webhook={"url": receiver.url})["id"]
        deliver(hooked)
        spec = stories.a_spec(hooked, webhook={"url": receiver.url})
        problem = problem_of(hooked.client.post("/jobs", json=spec), 422, "invalid_spec")
        assert problem["errors"][0]["pointer"] == "/webhook/url"
        assert "It answered 410." in problem["detail"]
        assert f"POST /jobs/{job_id}/webhook/redeliver" in problem["detail"]
        hooked.client.post(f"/jobs/{waiting}/cancel")
        assert hooked.client.get(f"/jobs/{waiting}").json()["webhook"]["status"] == "disabled"
        assert hooked.client.get("/webhooks/messages?status=disabled").json()["data"][0]["job_id"] == waiting
        message = hooked.client.get(f"/jobs/{job_id}/webhook").json()
        assert (message["status"], message["disabled_at"] is None) == ("failed", False)

        receiver.answer = answering(200)
        again = hooked.client.post(f"/jobs/{job_id}/webhook/redeliver")
        assert (again.status_code, again.json()["status"], again.json()["disabled_at"]) == (202, "pending", None)
        deliver(hooked)
        assert receiver.received[0].id == receiver.received[1].id == message["id"]
    assert hooked.client.post("/jobs", json=spec).status_code == 202
    assert [attempt["status_code"] for attempt in hooked.client.get(f"/jobs/{job_id}/webhook").json()["attempts"]] == [
        410,
        200,
    ]


def test_there_is_no_message_before_the_end_nor_without_a_webhook(hooked: Api) -> None:
    with Receiver() as receiver:
        asked = stories.submit(hooked, webhook={"url": receiver.url})["id"]
    plain = stories.submit(hooked)["id"]
    for method, path in (("GET", "webhook"), ("POST", "webhook/redeliver")):
        problem_of(hooked.client.request(method, f"/jobs/{asked}/{path}"), 409, "not_ready")
        problem_of(hooked.client.request(method, f"/jobs/{plain}/{path}"), 404, "not_found")
        problem_of(hooked.client.request(method, f"/jobs/job_{'0' * 26}/{path}"), 404, "not_found")


def test_messages_come_in_pages(hooked: Api) -> None:
    with Receiver() as receiver:
        ids = [cancelled(hooked, receiver.url) for _ in range(3)]
    first = hooked.client.get("/webhooks/messages?limit=2").json()
    second = hooked.client.get("/webhooks/messages", params={"limit": 2, "after": first["next_cursor"]}).json()
    assert [message["job_id"] for message in first["data"] + second["data"]] == ids[::-1]
    assert (first["has_more"], second["has_more"], second["next_cursor"]) == (True, False, None)
    problem_of(hooked.client.get("/webhooks/messages?after=x"), 400, "bad_request")


def test_a_secret_is_rotated_by_who_may_write_and_seen_by_nobody_else(
    serve: Callable[..., Api], two_keys: tuple[str, str], settings: Settings
) -> None:
    api = serve(open_access=False, **OPEN)
    with api.service.database.transaction() as session:
        reading = create_key(session, "a", "reader", scopes=READ_ONLY)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other, api.with_key(reading) as reader:
        assert mine.get("/webhooks/secrets").json()["data"] == []
        made = mine.post("/webhooks/secrets")
        assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
        new = mine.post("/webhooks/secrets?overlap_hours=1").json()
        listed = mine.get("/webhooks/secrets").json()["data"]
        assert [secret["secret"] for secret in listed] == [new["secret"], made.json()["secret"]]
        expiry = datetime.fromisoformat(listed[1]["expires_at"]) - datetime.now(UTC)
        assert timedelta(minutes=59) < expiry < timedelta(minutes=61)
        last = mine.post("/webhooks/secrets?overlap_hours=0").json()
        assert mine.get("/webhooks/secrets").json()["data"] == [last]
        assert other.get("/webhooks/secrets").json()["data"] == []
        problem_of(mine.post("/webhooks/secrets?overlap_hours=-1"), 422, "invalid_request")
        problem_of(reader.get("/webhooks/secrets"), 403, "forbidden")
        problem_of(reader.post("/webhooks/secrets"), 403, "forbidden")
    with api.service.database.read() as session:
        rotations = session.scalars(select(Audit).where(Audit.outcome == "done").order_by(Audit.at)).all()
    shown = [(row.tenant, row.object_id) for row in rotations if row.action == "webhook.secret_rotated"]
    assert shown == [("a", made.json()["id"]), ("a", new["id"]), ("a", last["id"])]
    with sqlite3.connect(settings.database_url.removeprefix("sqlite:///")) as connection:
        dump = "\n".join(connection.iterdump())
    for secret in (made.json(), new, last):
        assert secret["secret"] not in dump
        assert secret["secret"].removeprefix("whsec_") not in dump


def test_a_clone_tells_the_same_webhook_and_its_copy_of_the_spec_can_leave_it_out(hooked: Api) -> None:
    with Receiver() as receiver:
        job_id = cancelled(hooked, receiver.url)
        same = hooked.client.post(f"/jobs/{job_id}/clone", json={}).json()
        without = hooked.client.post(f"/jobs/{job_id}/clone", json={"webhook": None}).json()
    assert same["resolved_spec"]["webhook"] == {"url": receiver.url}
    assert without["resolved_spec"]["webhook"] is None


def test_openapi_has_what_is_sent_and_what_is_sent_is_that(hooked: Api) -> None:
    document = hooked.client.get("/openapi.json").json()
    assert set(document["webhooks"]) == {"job.succeeded", "job.failed", "job.cancelled"}
    sent: dict[str, Any] = document["webhooks"]["job.cancelled"]["post"]
    assert [parameter["name"] for parameter in sent["parameters"]] == [
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
    assert set(sent["responses"]) == {"2XX", "410"}
    with Receiver() as receiver:
        job_id = cancelled(hooked, receiver.url)
        deliver(hooked)
        body = sent["requestBody"]["content"]["application/json"]["schema"]
        schema = {**body, "components": document["components"]}
        Draft202012Validator(schema).validate(receiver.received[0].json)
    for path, url in (
        ("/jobs/{job_id}/webhook", f"/jobs/{job_id}/webhook"),
        ("/webhooks/messages", "/webhooks/messages"),
        ("/webhooks/secrets", "/webhooks/secrets"),
    ):
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        answer = hooked.client.get(url).json()
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer)
    assert hooked.client.get("/capabilities").json()["webhooks"]["delays_seconds"][:3] == [0, 5, 300]
