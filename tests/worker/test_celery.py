"""What the worker relies on Celery and the broker for, on the versions that are installed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from celery import Celery
from celery.app.defaults import DEFAULTS
from kombu.exceptions import OperationalError
from kombu.message import Message

from models.broker import SOCKET_SECONDS, celery_settings
from models.messages import TASK_RUN_JOB, queue_of
from models.settings import Settings
from models.statuses import JobStatus
from tests.services import Valkey
from tests.worker.fleet import Fleet
from worker.app import celery_app


def test_every_setting_is_one_that_celery_knows() -> None:
    ours = set(celery_settings("redis://localhost")) | set(celery_app(Settings()).conf.changes)
    assert ours - set(DEFAULTS) - {"deprecated_settings"} == set()


def test_a_busy_worker_leaves_nudges_in_the_queue_for_others(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start("device")
    running = fleet.submit("finish", gate=str(tmp_path / "gate"))
    fleet.wait(running, JobStatus.RUNNING)
    second = fleet.submit("finish")
    time.sleep(1.0)
    assert fleet.valkey.client().llen(queue_of("cpu")) == 1
    fleet.start("device")
    assert fleet.wait(second).status == "succeeded"
    (tmp_path / "gate").touch()
    assert fleet.wait(running).status == "succeeded"


@pytest.mark.timeout(60)
def test_a_publish_to_a_broker_that_hangs_gives_up(valkey: Valkey) -> None:
    app = Celery("test", set_as_current=False)
    app.conf.update(celery_settings(valkey.url))
    assert app.conf.broker_transport_options["socket_timeout"] == SOCKET_SECONDS
    app.conf.broker_transport_options["socket_timeout"] = 1
    app.send_task(TASK_RUN_JOB, queue=queue_of("cpu"))
    valkey.pause()
    try:
        with pytest.raises((OperationalError, OSError)):
            app.send_task(TASK_RUN_JOB, queue=queue_of("cpu"))
    finally:
        valkey.resume()
        app.close()


def test_a_nudge_in_hand_when_the_broker_dies_does_not_end_the_worker(valkey: Valkey) -> None:
    app = celery_app(Settings(broker_url=valkey.url))
    app.send_task(TASK_RUN_JOB, queue=queue_of("cpu"))
    connection = app.connection_for_read()
    in_hand = list[Message]()
    app.amqp.queues.select_add(queue_of("cpu"))
    channel = connection.default_channel
    app.amqp.TaskConsumer(channel, on_message=in_hand.append).consume()
    connection.drain_events(timeout=5)
    assert len(in_hand) == 1
    valkey.stop(signal.SIGKILL)
    try:
        channel.connection.client = None  # as kombu leaves it when it had to close the transport first
        channel.close()
        channel.connection = None
        in_hand[0].ack()  # type: ignore[no-untyped-call]
    finally:
        valkey.start()
        app.close()
