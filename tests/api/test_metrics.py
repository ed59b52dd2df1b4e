"""Metrics, read as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from api import metrics
from models.database import migrate
from models.settings import Settings
from models.tables import Job
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of
from tests.api.test_meta import register
from tests.services import Postgres

TOKEN = "t" * 20


@pytest.fixture(autouse=True)
def _every_scrape_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0.0)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(client: httpx.Client) -> Samples:
    response = client.get("/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(response.text))
    assert all(family.name.startswith("modelpress_") and family.documentation for family in families)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"modelpress_{name}", frozenset(labels.items())]


def test_jobs_queues_workers_uploads_and_bytes_are_counted(serve: Callable[..., Api]) -> None:
    api = serve()
    assert value(scraped(api.client), "jobs", status="queued") == 0
    register(api, "w1", "cpu")
    register(api, "c1", None)
    stories.submit(api)
    running = stories.start(api.service.database)
    stories.submit(api)
    stories.submit(api)
    rejected = stories.upload_network(api.client)
    stories.inspect_next(api.service.database, None)
    assert rejected
    samples = scraped(api.client)
    assert value(samples, "jobs", status="queued") == 2
    assert value(samples, "jobs", status="running") == 1
    assert value(samples, "jobs", status="failed") == 0
    assert value(samples, "queue_depth", device="auto") == 2
    assert value(samples, "queue_depth", device="cuda") == 0
    assert 0 < value(samples, "queue_oldest_seconds", device="auto") < 60
    assert value(samples, "workers", queue="device.cpu") == value(samples, "workers", queue="control") == 1
    assert value(samples, "slots", device="cpu") == 1
    assert value(samples, "free_slots", device="cpu") == 0
    assert value(samples, "uploads", kind="network", status="ready") == 3
    assert value(samples, "uploads", kind="network", status="rejected") == 1
    assert value(samples, "stored_bytes", kind="network") == 4 * len(stories.a_pt2())
    assert value(samples, "condemned_blobs") == 0
    assert value(samples, "database_up") == 1
    stories.succeed(api, running, {"model.onnx": b"bytes"})
    assert value(scraped(api.client), "stored_bytes", kind="artifact") == 5


def test_jobs_that_end_are_counted_once_with_how_long_they_ran_and_waited(serve: Callable[..., Api]) -> None:
    api = serve()
    stories.submit(api)
    stories.succeed(api, stories.start(api.service.database))
    assert ("modelpress_job_wait_seconds_count", frozenset[tuple[str, str]]()) in scraped(api.client)
    for _ in range(2):
        stories.submit(api)
        job = stories.start(api.service.database)
        with api.service.database.transaction() as session:
            row = session.get_one(Job, job.id)
            row.created_at, row.started_at = (
                job.created_at - timedelta(seconds=30),
                job.created_at - timedelta(seconds=20),
            )
        stories.succeed(api, job)
        samples = scraped(api.client)
    assert value(samples, "job_run_seconds_count", status="succeeded") == 2
    assert 40 <= value(samples, "job_run_seconds_sum", status="succeeded") < 100
    assert value(samples, "job_run_seconds_bucket", status="succeeded", le="15.0") == 0
    assert value(samples, "job_wait_seconds_sum") == pytest.approx(20)


def test_requests_are_counted_by_route_and_never_by_path(serve: Callable[..., Api]) -> None:
    api = serve()
    body = stories.a_pt2(b"x" * 1000)
    network_id = stories.upload_network(api.client, body)
    for _ in range(3):
        assert api.client.get(f"/models/{network_id}").status_code == 200
    api.client.get("/models/nothing")
    api.client.get("/nowhere/at/all")
    api.client.request("PROPFIND", "/nowhere")
    samples = scraped(api.client)
    found = {"method": "GET", "route": "/models/{model_id}"}
    assert value(samples, "http_request_seconds_count", status="200", **found) == 3
    assert value(samples, "http_request_seconds_count", status="404", **found) == 1
    assert value(samples, "http_request_seconds_count", method="GET", route="none", status="404") == 1
    assert value(samples, "http_request_seconds_count", method="other", route="none", status="404") == 1
    assert value(samples, "http_received_bytes_total", route="/models") == len(body)
    assert value(samples, "http_sent_bytes_total", route="/models/{model_id}") > 300
    assert network_id not in str(samples)


def test_metrics_want_their_own_token_and_show_nothing_of_tenants(
    serve: Callable[..., Api], two_keys: tuple[str, str]
) -> None:
    api = serve(open_access=False, metrics_token=TOKEN)
    with api.with_key(two_keys[0]) as client:
        job = stories.submit(api, client)
        problem_of(client.get("/metrics"), 401, "unauthorized")
    problem_of(api.client.get("/metrics"), 401, "unauthorized")
    with api.with_key(TOKEN) as prometheus:
        problem_of(prometheus.get("/jobs"), 401, "unauthorized")
        assert value(scraped(prometheus), "jobs", status="queued") == 1
        text = prometheus.get("/metrics").text
    for secret in (*two_keys, TOKEN, job["id"], job["resolved_spec"]["model"], "tenant", "small"):
        assert secret not in text


def test_without_a_token_there_are_no_metrics_and_a_short_one_is_refused(serve: Callable[..., Api]) -> None:
    api = serve(open_access=False, bootstrap_key="mp_" + "k" * 40)
    problem_of(api.client.get("/metrics"), 401, "unauthorized")
    problem_of(api.client.get("/metrics", headers={"Authorization": "Bearer None"}), 401, "unauthorized")
    with pytest.raises(ValueError, match="at least 16"):
        Settings(metrics_token="short")


def test_without_a_database_the_metrics_say_so(serve: Callable[..., Api]) -> None:
    postgres = Postgres()
    try:
        postgres.create("alone")
        migrate(postgres.url("alone"))
        api = serve(database_url=postgres.url("alone"))
        assert value(scraped(api.client), "database_up") == 1
        postgres.stop()
        samples = scraped(api.client)
        assert value(samples, "database_up") == 0
        assert not any(name == "modelpress_jobs" for name, _ in samples)
        postgres.start()
        assert value(scraped(api.client), "database_up") == 1
    finally:
        postgres.close()
