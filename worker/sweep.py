"""What makes lost messages and lost workers cost a delay and never a job. Safe to run twice, and beside itself."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from celery import Celery

from models import inspections, queue, transitions, webhooks, workers
from models.blobs import Blobs
from models.database import Database, now
from models.messages import CONTROL_QUEUE, TASK_DELIVER, TASK_INSPECT, TASK_RUN_JOB, queue_of
from models.settings import Settings
from worker.app import DELIVERIES, INSPECTIONS
from worker.upkeep import Upkeep

_logger = logging.getLogger(__name__)


class Sweep:
    """Ends attempts whose lease ran out, and tops nudges up to what could start now."""

    def __init__(self, database: Database, blobs: Blobs, settings: Settings, app: Celery) -> None:
        self._database, self._settings, self._app = database, settings, app
        self._lease = settings.scaled(settings.lease_seconds)
        self._one_at_a_time = threading.Lock()
        self._steady_since: float | None = None
        self._last_success = 0.0
        self._upkeep = Upkeep(database, blobs, settings)

    def run(self) -> None:
        if not self._one_at_a_time.acquire(blocking=False):
            return
        try:
            wanted = self._look()
            self._nudge(wanted)
            self._upkeep.start_if_due()
        finally:
            self._one_at_a_time.release()

    def _look(self) -> dict[tuple[str, str], int]:
        """End what is lost; returns how many nudges each (task, queue) should have waiting."""
        with self._database.transaction() as session:
            moment = now(session)
            ended: list[tuple[str, str]] = []
            if self._may_reap():
                strikes = self._settings.max_strikes
                ended += transitions.sweep(session, max_strikes=strikes, now=moment)
                ended += inspections.sweep_uploads(session, max_strikes=strikes, now=moment)
                workers.forget(session, silent_since=moment - timedelta(seconds=10 * self._lease))
            free = workers.free_slots(session, heard_since=moment - timedelta(seconds=self._lease))
            wanted = {
                (TASK_RUN_JOB, queue_of(device_class)): min(slots, queue.queued_count(session, device_class))
                for device_class, slots in free.items()
            }
            wanted[TASK_INSPECT, CONTROL_QUEUE] = min(INSPECTIONS, inspections.waiting_count(session))
            wanted[TASK_DELIVER, CONTROL_QUEUE] = min(DELIVERIES, webhooks.due_count(session, moment))
        for name, status in ended:
            _logger.warning("%s: its worker was lost; it is %s now", name, status)
        self._last_success = time.monotonic()
        return wanted

    def _may_reap(self) -> bool:
        """Only once the database has answered for a whole lease: after a gap every lease looks as if it had run out,
        and those whose workers live are renewed first."""
        at = time.monotonic()
        if self._steady_since is None or at - self._last_success > self._lease / 2:
            self._steady_since = at
        return at - self._steady_since >= self._lease

    def _nudge(self, wanted: dict[tuple[str, str], int]) -> None:
        if not any(wanted.values()):
            return
        with self._app.producer_or_acquire() as producer:
            for (task, name), count in wanted.items():
                if count:
                    waiting = 0 if name == CONTROL_QUEUE else producer.channel.queue_declare(name).message_count
                    for _ in range(count - waiting):
                        self._app.send_task(task, queue=name, producer=producer, ignore_result=True)
