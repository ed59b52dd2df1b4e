"""The four messages a worker understands."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery

from models.errors import Code, Failure
from models.messages import TASK_DELIVER, TASK_INSPECT, TASK_RUN_JOB, TASK_SWEEP
from worker.app import Kind
from worker.service import WorkerService
from worker.sweep import Sweep

_logger = logging.getLogger(__name__)


def define_tasks(app: Celery, service: WorkerService, kind: Kind) -> None:
    """Join the names on the wire to what they do. None takes arguments: what to do is in the database."""
    if kind == "device":
        app.task(name=TASK_RUN_JOB)(_task(service.run_jobs))
        return
    sweep = Sweep(service.database, service.blobs, service.settings, app)
    app.task(name=TASK_INSPECT)(_task(service.inspect_uploads))
    app.task(name=TASK_DELIVER)(_task(service.deliver_webhooks))
    app.task(name=TASK_SWEEP)(_task(sweep.run))


def _task(work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        try:
            work()
        except Failure as failure:
            if failure.code is not Code.UNAVAILABLE:
                raise
            _logger.warning("%s The next sweep tries again.", failure.message)

    return run
