"""The three messages a worker understands."""

from __future__ import annotations

from celery import Celery

from models.messages import TASK_INSPECT, TASK_RUN_JOB, TASK_SWEEP
from worker.app import Kind
from worker.service import WorkerService
from worker.sweep import Sweep


def define_tasks(app: Celery, service: WorkerService, kind: Kind) -> None:
    """Join the names on the wire to what they do. None takes arguments: what to do is in the database."""
    if kind == "device":

        def run_jobs() -> None:
            service.run_jobs()

        app.task(name=TASK_RUN_JOB)(run_jobs)
        return

    def inspect_uploads() -> None:
        service.inspect_uploads()

    sweep = Sweep(service.database, service.blobs, service.settings, app)

    def run_sweep() -> None:
        sweep.run()

    app.task(name=TASK_INSPECT)(inspect_uploads)
    app.task(name=TASK_SWEEP)(run_sweep)
