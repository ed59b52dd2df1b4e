"""The Celery app of a worker: which queue it serves, how many things it does at once, what beat sends."""

from __future__ import annotations

from typing import Literal

from celery import Celery
from kombu.transport.redis import Channel

from models.broker import celery_settings
from models.messages import CONTROL_QUEUE, TASK_SWEEP, queue_of
from models.settings import Settings

Kind = Literal["control", "device"]

INSPECTIONS = 2
"""Uploads a control worker inspects at once."""
DELIVERIES = 4
"""Messages to webhooks a control worker sends at once. One slot more is always left to the sweep."""


def queue_for(settings: Settings, kind: Kind) -> str:
    """`control`, or the queue of the device class that this worker offers."""
    return CONTROL_QUEUE if kind == "control" else queue_of(settings.device_class)


def slots_for(kind: Kind) -> int:
    """A device worker is one slot: one engine per device set."""
    return INSPECTIONS + DELIVERIES + 1 if kind == "control" else 1


def celery_app(settings: Settings) -> Celery:
    """Threads, because each only watches a process of its own; with those, Celery's time limits are not needed."""
    # A nudge that was in hand when the broker went away is sent again by the next sweep. kombu would put it back over
    # the connection that is gone, which now and then ended the whole worker.
    Channel.do_restore = False
    app = Celery("modelpress.worker", set_as_current=False)
    app.conf.update(celery_settings(settings.broker_url))
    sweep_seconds = settings.scaled(settings.sweep_seconds)
    app.conf.update(
        worker_pool="threads",
        worker_hijack_root_logger=False,  # `models.logs` has set it
        worker_redirect_stdouts=False,
        # A sweep that waited in the queue is worth nothing once the next one is there.
        beat_schedule={
            "sweep": {"task": TASK_SWEEP, "schedule": sweep_seconds, "options": {"expires": 2 * sweep_seconds}}
        },
        beat_max_loop_interval=sweep_seconds,
    )
    return app
