"""A worker process: what it owns while it lives, how it says that it lives, and how it stops."""

from __future__ import annotations

import logging
import platform
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from models import logs, workers
from models.database import Database, now
from models.errors import Failure
from models.ids import new_id
from models.settings import Settings
from models.storage import open_blobs
from models.tables import Worker
from worker import sandbox
from worker.app import DELIVERIES, INSPECTIONS, Kind, queue_for, slots_for
from worker.job import claim_job, run_job
from worker.machine import memory_bytes
from worker.supervisor import ENGINE, Supervisor
from worker.upload import claim_upload, inspect_upload
from worker.webhooks import Courier
from worker.workplace import Workplace

_VERSIONS = ("modelpress", "torch", "onnxruntime", "celery")
_IF_INSTALLED = ("timm", "transformers")
"""Networks come by name where these are."""
_logger = logging.getLogger(__name__)


class WorkerService:
    """Registered, with a heartbeat and a folder of its own, while the `with` block runs."""

    def __init__(self, settings: Settings, kind: Kind, command: Sequence[str] = ENGINE) -> None:
        self.settings, self.kind = settings, kind
        self.id = new_id("wrk")
        self.draining = threading.Event()
        self.database = Database(settings.database_url)
        self.blobs = open_blobs(settings)
        self._workplace = Workplace(settings.work, self.id)
        at_once = INSPECTIONS if kind == "control" else 1
        self._supervisor = Supervisor(
            self.database, self.blobs, settings, self._workplace, self.draining, command, at_once
        )
        self._inspecting = threading.BoundedSemaphore(INSPECTIONS)
        self._courier = Courier(self.database, settings, self.draining)
        self._delivering = threading.BoundedSemaphore(DELIVERIES)
        self._stopped = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> WorkerService:
        self._workplace.__enter__()
        self._heart.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._stopped.set()
        self._heart.join()
        try:
            with self.database.transaction() as session:
                workers.leave(session, self.id)
        except Failure as failure:
            _logger.warning("%s stops without saying so: %s", self.id, failure.message)
        self._workplace.__exit__(*problem)
        self.database.close()

    def run_jobs(self) -> None:
        """Run what waits for this device class until nothing does: one nudge may stand for several lost ones."""
        while not self.draining.is_set() and (assignment := claim_job(self.database, self.settings, self.id)):
            job = assignment.job
            with logs.about(job_id=job.id):
                _logger.info("job %s: attempt %d begins", job.id, job.attempt)
                run_job(self._supervisor, assignment)
                _logger.info("job %s: attempt %d has ended", job.id, job.attempt)

    def deliver_webhooks(self) -> None:
        """Send what is due. Does nothing while all slots for it are taken."""
        with _a_slot(self._delivering) as free:
            if free:
                self._courier.deliver()

    def inspect_uploads(self) -> None:
        """Inspect what waits. Does nothing while all slots for it are taken, so that the sweep always has one."""
        with _a_slot(self._inspecting) as free:
            while free and not self.draining.is_set() and (upload := claim_upload(self.database, self.settings)):
                with logs.about(upload_id=upload.id):
                    inspect_upload(self._supervisor, upload)

    def _beat(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            pause = self.settings.scaled(self.settings.heartbeat_seconds)
            try:
                with self.database.transaction() as session:
                    if not workers.beat(session, self.id, now(session)):
                        workers.register(session, self._row(session))
            except Failure as failure:
                _logger.warning("heartbeat: %s Trying again.", failure.message)
            except SQLAlchemyError:
                _logger.exception("heartbeat: the database refuses it; trying again")

    def _row(self, session: Session) -> Worker:
        moment = now(session)
        on_device = self.kind == "device"
        there = [name for name in _IF_INSTALLED if next(iter(metadata.distributions(name=name)), None) is not None]
        versions = {name: metadata.version(name) for name in (*_VERSIONS, *there)}
        return Worker(
            id=self.id,
            queue=queue_for(self.settings, self.kind),
            device_class=self.settings.device_class if on_device else None,
            device_set=self.settings.gpus if on_device else None,
            slots=slots_for(self.kind),
            memory_bytes=memory_bytes() if self.settings.device_class == "cpu" else None,
            versions={**versions, "python": platform.python_version(), "host": socket.gethostname()},
            sandbox=sandbox.level(shares_network=self.settings.allow_shared_network),
            started_at=moment,
            heartbeat_at=moment,
        )


@contextmanager
def _a_slot(slots: threading.Semaphore) -> Iterator[bool]:
    """Whether there is one; nobody waits for it."""
    free = slots.acquire(blocking=False)
    try:
        yield free
    finally:
        if free:
            slots.release()
