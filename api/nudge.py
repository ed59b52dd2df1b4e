"""Telling workers that there is something to do, without ever making a request wait for the broker.

A nudge names no job. One that is lost costs a delay until the next sweep, never a job; so one thread sends, and drops
what it cannot send.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

from celery import Celery
from kombu.exceptions import OperationalError

from models.broker import celery_settings
from models.messages import CONTROL_QUEUE, TASK_DELIVER, TASK_INSPECT, TASK_RUN_JOB, queue_of

logger = logging.getLogger("modelpress.nudge")

MAX_WAITING = 1000
"""Nudges of one kind that may wait; the sweep sends what is missing."""
CLOSE_SECONDS = 2.0


class Nudger:
    """One background thread. `close` gives it two seconds to send what waits."""

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("modelpress.api", set_as_current=False)
        self._celery.conf.update(celery_settings(broker_url))
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._send_all, name="nudge", daemon=True)
        self._thread.start()

    def job_queued(self, device_class: str) -> None:
        self._add(TASK_RUN_JOB, queue_of(device_class))

    def upload_waits(self) -> None:
        self._add(TASK_INSPECT, CONTROL_QUEUE)

    def webhook_waits(self) -> None:
        self._add(TASK_DELIVER, CONTROL_QUEUE)

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def _add(self, task: str, queue: str) -> None:
        with self._changed:
            if self._waiting[task, queue] < MAX_WAITING:
                self._waiting[task, queue] += 1
                self._changed.notify()

    def _send_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting.total() > 0)
                if self._waiting.total() == 0:
                    break
                waiting, self._waiting = self._waiting, Counter()
            for (task, queue), count in waiting.items():
                self._send(task, queue, count)
        self._celery.close()

    def _send(self, task: str, queue: str, count: int) -> None:
        try:
            for _ in range(count):
                self._celery.send_task(task, queue=queue, ignore_result=True)
        except (OperationalError, OSError) as error:
            logger.warning("%d nudges to %s were not sent, the sweep will: %s", count, queue, error)
