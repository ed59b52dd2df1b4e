"""What Prometheus reads at `/metrics`: this process's requests, and what the database says of the whole deployment.

Nothing here names a tenant, an object or a key: labels are routes, statuses, device classes. What the database says is
the same from every api process: take the maximum over them, not the sum. Requests are counted by each process since it
started, jobs that end since it was first read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models import workers
from models.database import Database, now
from models.errors import Failure
from models.messages import DEVICE_CLASSES
from models.settings import Settings
from models.statuses import JobStatus, UploadStatus
from models.tables import Artifact, Checkpoint, CondemnedBlob, Dataset, Job, Network

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
JOB_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86400, 7 * 86400)
KEPT_SECONDS = 2.0
"""Scrapes closer together than this ask the database once."""
LATE_COMMIT = timedelta(minutes=1)
"""How much later than its `finished_at` the end of a job may become visible."""


class Metrics:
    """Of one api process. Safe to use from several threads."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "modelpress_http_request_seconds",
            "From the first byte in to the last byte out; long polls and event streams last as long as they are asked",
            ["method", "route", "status"],
            buckets=REQUEST_BUCKETS,
            registry=self._registry,
        )
        self._received = Counter(
            "modelpress_http_received_bytes", "Bodies of requests", ["route"], registry=self._registry
        )
        self._sent = Counter("modelpress_http_sent_bytes", "Bodies of answers", ["route"], registry=self._registry)
        ended = _Ended()
        self._registry.register(_Deployment(settings, database, ended))
        self._registry.register(ended.run)
        self._registry.register(ended.wait)

    def request(self, method: str, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one request. `route` is its template, never its path."""
        self._seconds.labels(method if method in METHODS else "other", route, str(status)).observe(seconds)
        self._received.labels(route).inc(received)
        self._sent.labels(route).inc(sent)

    def exposition(self) -> bytes:
        """The text format of Prometheus, version 0.0.4."""
        return generate_latest(self._registry)


class _Ended:
    """Histograms of the jobs that end, each job counted once."""

    def __init__(self) -> None:
        self.run = Histogram(
            "modelpress_job_run_seconds",
            "From a job's first start to its end",
            ["status"],
            buckets=JOB_BUCKETS,
            registry=None,
        )
        self.wait = Histogram(
            "modelpress_job_wait_seconds",
            "From a job's submission to its first start, of jobs that ended",
            buckets=JOB_BUCKETS,
            registry=None,
        )
        self._from: datetime | None = None
        self._counted: dict[str, datetime] = {}

    def look(self, session: Session, moment: datetime) -> None:
        """Count what ended since the last look; the first one only begins."""
        if self._from is None:
            self._from = moment
        found = select(Job.id, Job.status, Job.created_at, Job.started_at, Job.finished_at)
        for job_id, status, created_at, started_at, finished_at in session.execute(
            found.where(Job.finished_at >= self._from)
        ).tuples():
            if job_id in self._counted or finished_at is None:
                continue
            self._counted[job_id] = finished_at
            if started_at is not None:
                self.run.labels(status).observe((finished_at - started_at).total_seconds())
                self.wait.observe((started_at - created_at).total_seconds())
        self._from = max(self._from, moment - LATE_COMMIT)
        self._counted = {job_id: at for job_id, at in self._counted.items() if at >= self._from}


class _Deployment:
    """A collector of `prometheus_client`: asks the database when it is scraped."""

    def __init__(self, settings: Settings, database: Database, ended: _Ended) -> None:
        self._settings, self._database, self._ended = settings, database, ended
        self._lock = threading.Lock()
        self._last: tuple[float, list[Metric]] | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing: so registering it asks no database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if self._last is None or self._last[0] < time.monotonic() - KEPT_SECONDS:
                self._last = time.monotonic(), self._look()
            found = self._last[1]
        yield from found

    def _look(self) -> list[Metric]:
        answers = _gauge("modelpress_database_up", "Whether the database answered")
        try:
            with self._database.read() as session:
                moment = now(session)
                found = [*_jobs(session, moment), *self._workers(session, moment), *_stored(session)]
                self._ended.look(session, moment)
        except Failure:
            answers.add_metric([], 0)
            return [answers]
        answers.add_metric([], 1)
        return [answers, *found]

    def _workers(self, session: Session, moment: datetime) -> Iterator[Metric]:
        heard = moment - timedelta(seconds=self._settings.scaled(self._settings.lease_seconds))
        alive = _gauge("modelpress_workers", "Workers heard within a lease", "queue")
        slots = _gauge("modelpress_slots", "Jobs that the live workers of a device class can run at once", "device")
        free = _gauge("modelpress_free_slots", "Of these, how many could start now", "device")
        queues: dict[str, int] = {}
        room: dict[str, int] = dict.fromkeys(DEVICE_CLASSES, 0)
        for worker in workers.live(session, heard_since=heard):
            queues[worker.queue] = queues.get(worker.queue, 0) + 1
            if worker.device_class is not None:
                room[worker.device_class] += worker.slots
        _fill(alive, queues)
        _fill(slots, room)
        _fill(free, dict.fromkeys(DEVICE_CLASSES, 0) | workers.free_slots(session, heard_since=heard))
        yield from (alive, slots, free)


def _jobs(session: Session, moment: datetime) -> Iterator[Metric]:
    jobs = _gauge("modelpress_jobs", "Jobs in the database", "status")
    counted = dict(session.execute(select(Job.status, func.count()).group_by(Job.status)).tuples().all())
    _fill(jobs, dict.fromkeys((status.value for status in JobStatus), 0) | counted)
    depth = _gauge("modelpress_queue_depth", "Jobs that wait; auto: for any device class", "device")
    oldest = _gauge("modelpress_queue_oldest_seconds", "How long the oldest of them has waited", "device")
    waiting = (
        select(Job.device, func.count(), func.min(Job.created_at))
        .where(Job.status == JobStatus.QUEUED)
        .group_by(Job.device)
    )
    found = {device: (count, since) for device, count, since in session.execute(waiting).tuples()}
    for device in ("auto", *DEVICE_CLASSES):
        count, since = found.get(device, (0, moment))
        depth.add_metric([device], count)
        oldest.add_metric([device], max(0.0, (moment - since).total_seconds()))
    yield from (jobs, depth, oldest)


def _stored(session: Session) -> Iterator[Metric]:
    uploads = _gauge("modelpress_uploads", "Networks and data sets", "kind", "status")
    size = _gauge("modelpress_stored_bytes", "What rows name; the same bytes named twice count twice", "kind")
    for kind, table in (("network", Network), ("dataset", Dataset)):
        counted = dict(session.execute(select(table.status, func.count()).group_by(table.status)).tuples().all())
        for status in UploadStatus:
            uploads.add_metric([kind, status.value], counted.get(status.value, 0))
    for kind, column in (
        ("network", Network.size_bytes),
        ("dataset", Dataset.size_bytes),
        ("artifact", Artifact.size_bytes),
        ("checkpoint", Checkpoint.size_bytes),
    ):
        size.add_metric([kind], float(session.scalar(select(func.coalesce(func.sum(column), 0))) or 0))
    condemned = _gauge("modelpress_condemned_blobs", "Stored bytes that no row names and that will be deleted")
    condemned.add_metric([], session.scalar(select(func.count()).select_from(CondemnedBlob)) or 0)
    yield from (uploads, size, condemned)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _fill(gauge: GaugeMetricFamily, values: dict[str, int]) -> None:
    for label, value in sorted(values.items()):
        gauge.add_metric([label], value)
