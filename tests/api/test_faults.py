"""The service while others fail: a broker that hangs, a database that is gone, big files, a kill."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from models.database import migrate
from models.messages import CONTROL_QUEUE, TASK_INSPECT, TASK_RUN_JOB, queue_of
from models.settings import Settings
from tests.api import stories
from tests.api.serving import Api, served_by_a_process
from tests.api.stories import PRUNE, problem_of
from tests.services import Postgres, Valkey


def waiting(valkey: Valkey, queue: str) -> list[str]:
    """The tasks that wait in a queue, as Celery's Redis transport keeps them."""
    messages = valkey.client().lrange(queue, 0, -1)
    assert isinstance(messages, list)
    return [json.loads(message)["headers"]["task"] for message in messages]


def soon(holds: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_uploads_and_jobs_are_nudged_to_the_queues_that_workers_read(serve: Callable[..., Api], valkey: Valkey) -> None:
    api = serve(broker_url=valkey.url)
    network = stories.ready_network(api)
    for _ in range(3):
        api.client.post("/jobs", json={"model": network, "steps": [PRUNE]})
    assert soon(lambda: waiting(valkey, CONTROL_QUEUE) == [TASK_INSPECT])
    assert soon(lambda: waiting(valkey, queue_of("cpu")) == [TASK_RUN_JOB] * 3)


def test_a_hung_broker_delays_no_answer_and_later_nudges_arrive(serve: Callable[..., Api], valkey: Valkey) -> None:
    api = serve(broker_url=valkey.url)
    network = stories.ready_network(api)
    assert soon(lambda: waiting(valkey, CONTROL_QUEUE) == [TASK_INSPECT])
    valkey.pause()
    try:
        slowest = 0.0
        ids = set()
        for _ in range(30):
            started = time.monotonic()
            response = api.client.post("/jobs", json={"model": network, "steps": [PRUNE]})
            slowest = max(slowest, time.monotonic() - started)
            assert response.status_code == 202
            ids.add(response.json()["id"])
    finally:
        valkey.resume()
    assert slowest < 4.5, "a request waited for the broker, whose time-out is 5 s"
    assert {job["id"] for job in api.client.get("/jobs").json()["data"]} == ids

    def nudged_again() -> bool:
        api.client.post("/jobs", json={"model": network, "steps": [PRUNE]})
        time.sleep(0.2)
        return bool(waiting(valkey, queue_of("cpu")))

    assert soon(nudged_again, 60)


def test_while_the_database_is_gone_answers_are_503_and_come_back_with_it(
    serve: Callable[..., Api], settings: Settings
) -> None:
    server = Postgres()
    try:
        server.create("gone", "template1")
        migrate(server.url("gone"))
        api = serve(database_url=server.url("gone"))
        spec = stories.a_spec(api)
        server.stop()
        for response in (api.client.get("/jobs"), api.client.post("/jobs", json=spec)):
            problem_of(response, 503, "unavailable")
            assert int(response.headers["retry-after"]) >= 1
        upload = api.client.post("/models", content=stories.a_pt2())
        problem_of(upload, 503, "unavailable")
        assert list((Path(settings.blobs) / "staging").iterdir()) == []
        assert api.client.get("/healthz").status_code == 200
        assert api.client.get("/readyz").json()["checks"]["database"] != "ok"
        server.start()
        assert api.client.post("/jobs", json=spec).status_code == 202
    finally:
        server.close()


@pytest.fixture
def process(settings: Settings, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """`python -m api` on SQLite: its process id and its URL."""
    environment = {"database_url": settings.database_url, "blobs": settings.blobs, "open_access": "true"}
    with served_by_a_process(tmp_path, broker_url=settings.broker_url, **environment) as (running, base_url):
        yield running.pid, base_url


def test_a_big_upload_takes_no_memory(process: tuple[int, str]) -> None:
    pid, base_url = process
    piece = bytes(1 << 20)
    head = stories.a_pt2(piece)

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(200):
            yield piece

    before = psutil.Process(pid).memory_info().rss
    peak = before
    with ThreadPoolExecutor(1) as clients:
        upload = clients.submit(httpx.post, f"{base_url}/models", content=body(), timeout=300)
        while not upload.done():
            peak = max(peak, psutil.Process(pid).memory_info().rss)
            time.sleep(0.01)
    row = upload.result().json()
    assert upload.result().status_code == 201, row
    assert row["size_bytes"] == len(head) + 200 * len(piece)
    assert peak - before < 50 << 20


def test_an_acknowledged_job_outlives_a_kill_and_the_process_ends_cleanly_on_sigterm(
    settings: Settings, tmp_path: Path, api: Api
) -> None:
    network = stories.ready_network(api)
    environment = {"database_url": settings.database_url, "blobs": settings.blobs, "open_access": "true"}
    ids = set()
    for ending in (signal.SIGKILL, signal.SIGTERM):
        with served_by_a_process(tmp_path, broker_url=settings.broker_url, **environment) as (running, base_url):
            for _ in range(5):
                response = httpx.post(f"{base_url}/jobs", json={"model": network, "steps": [PRUNE]}, timeout=60)
                assert response.status_code == 202
                ids.add(response.json()["id"])
            running.send_signal(ending)
            code = running.wait(30)
        assert code == -ending
    assert {job["id"] for job in api.client.get("/jobs").json()["data"]} == ids


def test_who_is_cut_off_when_the_service_stops_is_told_to_try_again(settings: Settings, tmp_path: Path) -> None:
    """A sender that stands still outlasts the time that stopping gives."""
    environment = {"database_url": settings.database_url, "blobs": settings.blobs, "open_access": "true"}
    with (
        served_by_a_process(tmp_path, broker_url=settings.broker_url, **environment) as (running, base_url),
        socket.create_connection(("127.0.0.1", int(base_url.rpartition(":")[2])), timeout=60) as sender,
    ):
        asked = "POST /models HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 1000", "Expect: 100-continue"
        sender.sendall("\r\n".join([*asked, "", ""]).encode())
        answers = sender.makefile("rb")
        assert (answers.readline(), answers.readline()) == (b"HTTP/1.1 100 Continue\r\n", b"\r\n")
        running.send_signal(signal.SIGTERM)
        assert answers.readline().startswith(b"HTTP/1.1 503 ")
        headers, _, body = answers.read().partition(b"\r\n\r\n")
        assert b"retry-after: 5" in headers.lower().splitlines()
        assert json.loads(body)["code"] == "unavailable"
        assert running.wait(30) == -signal.SIGTERM


def test_it_says_why_it_does_not_start(settings: Settings, tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="There is no key yet"),
        served_by_a_process(tmp_path, database_url=settings.database_url, blobs=settings.blobs),
    ):
        pass
