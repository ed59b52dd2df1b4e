"""Events and logs: the list, the stream, resuming, many watchers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from api.services import events as event_service
from models.events import ENGINE_EVENT, MetricEvent, PhaseEvent, StatusEvent
from models.settings import Settings
from models.statuses import Phase
from tests.api import stories
from tests.api.serving import Api, served
from tests.api.stories import problem_of

STREAM = {"Accept": "text/event-stream"}


def metric(value: float) -> MetricEvent:
    return MetricEvent(name="loss", value=value, split="train")


class Frames:
    """Server-sent events as a browser reads them (WHATWG HTML, 9.2)."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.comments = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        frame: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                frame[name] = value
            else:
                if "data" in frame:
                    data = json.loads(frame["data"])
                    assert frame["id"] == str(data["id"])
                    assert frame["event"] == data["data"]["type"]
                    yield data
                frame = {}


@contextmanager
def streaming(api: Api, job_id: str, last: int | None = None, **params: int) -> Iterator[Frames]:
    headers = STREAM if last is None else {**STREAM, "Last-Event-ID": str(last)}
    with (
        httpx.Client(base_url=api.base_url, timeout=60) as client,
        client.stream("GET", f"/jobs/{job_id}/events", headers=headers, params=params) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Frames(response)


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, settings: Settings, serve: Callable[..., Api]) -> Api:
    if request.param == "sqlite":
        return serve()
    return serve(database_url=request.getfixturevalue("postgres_url"))


def test_the_list_pages_behind_after_and_ends_with_the_whole_job(either: Api) -> None:
    job_id = stories.submit(either)["id"]
    row = stories.start(either.service.database)
    stories.say(either.service.database, row, PhaseEvent(phase=Phase.PRUNING, step_index=0, step_count=1), metric(0.5))
    stories.succeed(either, row)
    first = either.client.get(f"/jobs/{job_id}/events", params={"limit": 3}).json()
    assert [event["id"] for event in first["data"]] == [1, 2, 3]
    assert [event["data"]["type"] for event in first["data"]] == ["status", "status", "phase"]
    second = either.client.get(f"/jobs/{job_id}/events", params={"after": first["next_cursor"]}).json()
    assert [event["id"] for event in second["data"]] == [4, 5]
    assert (second["has_more"], second["next_cursor"]) == (False, None)
    last = second["data"][-1]["data"]
    assert (last["type"], last["status"]) == ("status", "succeeded")
    assert last["job"] == either.client.get(f"/jobs/{job_id}").json()
    for event in first["data"] + second["data"]:
        if event["data"]["type"] == "status":
            StatusEvent.model_validate(event["data"])
        else:
            ENGINE_EVENT.validate_python(event["data"])


def test_a_stream_gives_events_as_they_happen_and_ends_with_the_whole_job(either: Api) -> None:
    job_id = stories.submit(either)["id"]
    with streaming(either, job_id) as stream:
        frames = iter(stream)
        assert next(frames)["data"]["status"] == "queued"
        row = stories.start(either.service.database)
        assert next(frames)["data"]["status"] == "running"
        stories.say(either.service.database, row, metric(0.5), metric(0.25))
        assert [next(frames)["data"]["value"] for _ in range(2)] == [0.5, 0.25]
        stories.fail(either.service.database, row)
        last = next(frames)
        assert last["data"]["status"] == "failed"
        assert last["data"]["job"]["error"]["code"] == "nan_loss"
        assert list(frames) == []


def test_a_stream_resumes_behind_the_last_event_without_loss_or_repetition(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    row = stories.start(api.service.database)
    seen: list[int] = []
    values = iter(range(1000))

    def talk() -> None:
        for _ in range(20):
            stories.say(api.service.database, row, *(metric(next(values)) for _ in range(10)))
            time.sleep(0.02)
        stories.succeed(api, row)

    talking = threading.Thread(target=talk)
    talking.start()
    over = False
    while not over:
        with streaming(api, job_id, last=seen[-1] if seen else None) as stream:
            for count, event in enumerate(stream):
                seen.append(event["id"])
                over = event["data"].get("status") == "succeeded"
                if count == 30:
                    break
    talking.join()
    assert seen == list(range(1, 204))


def test_a_stream_of_an_ended_job_that_was_received_whole_is_204_so_that_browsers_stop(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    api.client.post(f"/jobs/{job_id}/cancel")
    with streaming(api, job_id) as stream:
        *_, last = list(stream)
    assert last["data"]["job"]["status"] == "cancelled"
    again = api.client.get(f"/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": str(last["id"])})
    assert again.status_code == 204
    far = api.client.get(f"/jobs/{job_id}/events", headers={**STREAM, "Last-Event-ID": "9999999999"})
    assert far.status_code == 204


def test_last_event_id_goes_before_after_and_nonsense_in_it_is_refused(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    row = stories.start(api.service.database)
    stories.say(api.service.database, row, metric(1), metric(2))
    stories.succeed(api, row)
    with streaming(api, job_id, last=3, after=1) as stream:
        assert [event["id"] for event in stream] == [4, 5]
    for nonsense in ("-1", "x", "1e3", "٣", "99999999999"):
        headers = {b"Accept": STREAM["Accept"].encode(), b"Last-Event-ID": nonsense.encode()}
        problem = problem_of(
            api.client.get(f"/jobs/{job_id}/events", headers=list(headers.items())), 400, "bad_request"
        )
        assert problem["errors"][0]["pointer"] == "/header/last-event-id"
    problem_of(api.client.get(f"/jobs/{job_id}/events", params={"after": 2**31}), 422, "invalid_request")


def test_a_silent_stream_is_kept_alive(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_service, "KEEP_ALIVE_SECONDS", 0.2)
    job_id = stories.submit(api)["id"]
    with streaming(api, job_id) as stream:
        frames = iter(stream)
        next(frames)
        cancelling = threading.Timer(1.0, lambda: api.client.post(f"/jobs/{job_id}/cancel"))
        cancelling.start()
        assert next(frames)["data"]["status"] == "cancelled"
        assert stream.comments >= 2


def test_streams_and_long_polls_end_when_the_service_stops(settings: Settings) -> None:
    with served(settings) as api:
        job_id = stories.submit(api)["id"]
        endings: list[object] = []

        def read_on() -> None:
            with streaming(api, job_id) as stream:
                endings.append([event["id"] for event in stream])

        def poll() -> None:
            answer = httpx.get(f"{api.base_url}/jobs/{job_id}", params={"wait": 60}, timeout=90)
            endings.append(answer.json()["status"])

        waiting = [threading.Thread(target=read_on), threading.Thread(target=poll)]
        for thread in waiting:
            thread.start()
        time.sleep(1.0)
        assert endings == []
        stopped = time.monotonic()
    for thread in waiting:
        thread.join(60)
    assert time.monotonic() - stopped < 30
    assert sorted(map(str, endings)) == ["[1]", "queued"]


def test_a_watcher_who_goes_away_is_forgotten(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    with streaming(api, job_id) as stream:
        next(iter(stream))
        assert api.service.watch.watched == {job_id}
    deadline = time.monotonic() + 30
    while api.service.watch.watched and time.monotonic() < deadline:
        time.sleep(0.05)
    assert api.service.watch.watched == frozenset()


def test_a_hundred_watchers_cost_no_more_queries_than_one(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    row = stories.start(api.service.database)
    received: list[list[int]] = []
    ready = threading.Semaphore(0)

    def watch() -> None:
        with streaming(api, job_id) as stream:
            ids = []
            for event in stream:
                ids.append(event["id"])
                if event["id"] == 2:
                    ready.release()
            received.append(ids)

    watchers = [threading.Thread(target=watch) for _ in range(100)]
    for watcher in watchers:
        watcher.start()
    for _ in watchers:
        assert ready.acquire(timeout=60)
    before, started = api.service.watch.queries, time.monotonic()
    time.sleep(2.0)
    asked, seconds = api.service.watch.queries - before, time.monotonic() - started
    assert asked <= seconds / 0.25 + 2
    stories.say(api.service.database, row, *(metric(value) for value in range(5)))
    stories.succeed(api, row)
    for watcher in watchers:
        watcher.join(60)
    assert received == [[1, 2, 3, 4, 5, 6, 7, 8]] * 100


def test_the_log_is_plain_text_in_order_also_of_a_failed_job(either: Api) -> None:
    job_id = stories.submit(either)["id"]
    assert either.client.get(f"/jobs/{job_id}/log").text == ""
    row = stories.start(either.service.database)
    for number in range(250):
        stories.write_log(either.service.database, row, f"line {number} ü\n")
    stories.fail(either.service.database, row)
    response = either.client.get(f"/jobs/{job_id}/log")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text == "".join(f"line {number} ü\n" for number in range(250))
