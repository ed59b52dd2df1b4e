"""Starting a worker process and stopping it: Celery serves the queue, beat runs beside it, SIGTERM drains."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import celery.beat
import celery.worker.state
from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

from models import logs
from models.settings import Settings, settings
from worker import sandbox
from worker.app import Kind, celery_app, queue_for, slots_for
from worker.service import WorkerService
from worker.supervisor import ENGINE
from worker.tasks import define_tasks

_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str], command: Sequence[str] = ENGINE) -> int:
    """Serve until SIGTERM or SIGINT. `command` starts an engine; see `Supervisor`."""
    parser = argparse.ArgumentParser(prog="python -m worker")
    parser.add_argument("kind", choices=["control", "device"])
    parser.add_argument(
        "--allow-weak-sandbox", action="store_true", help="start even where the kernel cannot confine an engine"
    )
    given = parser.parse_args(arguments)
    kind: Kind = given.kind
    logs.configure(settings().log_format, settings().log_level.upper())
    for name in ("celery.beat", "celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they say more than once a second that all is well
    allow_weak = given.allow_weak_sandbox or settings().allow_weak_sandbox
    problem = _why_not_here(settings(), kind, allow_weak=allow_weak)
    if problem is not None:
        _logger.error(problem)
        return 1
    with WorkerService(settings(), kind, command) as service:
        return _serve(service, kind)


def _serve(service: WorkerService, kind: Kind) -> int:
    app = celery_app(service.settings)
    define_tasks(app, service, kind)

    def drain(*_: object, **__: object) -> None:
        service.draining.set()
        celery.worker.state.should_stop = 0  # Celery takes no more and waits for its tasks, which end by the drain

    def take_signals(**_: object) -> None:
        # Celery's own for the last three would cancel tasks, which threads cannot, or start the worker again.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, drain)

    worker_shutting_down.connect(drain, weak=False)
    worker_ready.connect(take_signals, weak=False)
    if kind == "control":
        threading.Thread(target=_beat, args=(app,), name="beat", daemon=True).start()
    options = ["--pool=threads", f"--concurrency={slots_for(kind)}", f"--queues={queue_for(service.settings, kind)}"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=INFO"]
    app.worker_main(["--quiet", "worker", f"--hostname={service.id}@%h", *options, *quiet])
    if service.draining.is_set():
        return 0
    _logger.error("Celery ended, and nobody had asked for it. Start this worker again.")
    return 1


def _beat(app: Celery) -> None:
    """Celery's beat in a thread, started again should it ever end: without it nothing would be swept."""
    while True:
        try:
            celery.beat.Service(app, scheduler_cls=celery.beat.Scheduler).start()
        except Exception:
            _logger.exception("beat ended; it starts again")
        time.sleep(1)


def _why_not_here(settings: Settings, kind: Kind, *, allow_weak: bool) -> str | None:
    try:
        sandbox.check()
    except sandbox.CannotConfine as problem:
        if not (allow_weak and problem.is_partial):
            return str(problem)
        _logger.warning("Engines are confined by no more than: %s. Trust every upload.", sandbox.level())
    if kind == "device" and settings.allow_shared_network and not sandbox.has_networks():
        _logger.warning(
            "MODELPRESS_ALLOW_SHARED_NETWORK is set: jobs that train in several processes reach over TCP whatever this "
            "worker does. Trust every upload."
        )
    if kind == "device" and settings.device_class == "cuda" and not Path("/dev/nvidiactl").exists():
        return "MODELPRESS_DEVICE_CLASS is cuda, but this machine shows no NVIDIA device."
    return None
