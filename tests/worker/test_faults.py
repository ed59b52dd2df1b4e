"""Workers, brokers and databases that die or vanish: every accepted job ends once, none is lost, nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from models.database import migrate
from models.messages import queue_of
from models.statuses import JobStatus
from tests.services import Postgres, Valkey
from tests.worker.fleet import Fleet, until


def test_a_job_of_a_killed_worker_runs_again_from_its_checkpoint(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start("control")
    first = fleet.start("device")
    job_id = fleet.submit("finish", gate=str(tmp_path / "gate"))
    until(lambda: any(event["type"] == "checkpoint" for event in fleet.events(job_id)), "a checkpoint")
    first.kill()
    first.wait()
    until(lambda: not fleet.engines(), "the engine to die with its worker", 2.0)
    assert fleet.runs_on_disk()
    (tmp_path / "gate").touch()
    fleet.start("device")
    assert len(fleet.runs_on_disk()) <= 1, "the new worker cleared up after the dead one"
    job = fleet.wait(job_id)
    assert job.status == "succeeded", job.error
    assert (job.attempt, job.strikes) == (2, 1)
    assert fleet.statuses(job_id) == ["queued", "running", "queued", "running", "succeeded"]
    assert "resumed from" in fleet.log(job_id)
    until(lambda: not fleet.runs_on_disk(), "no run folder to be left")


def test_a_job_whose_workers_keep_dying_fails_as_worker_lost(fleet: Fleet) -> None:
    fleet.start("control")
    job_id = fleet.submit("spin")
    for attempt in (1, 2, 3):
        worker = fleet.start("device")
        until(lambda attempt=attempt: fleet.job(job_id).attempt == attempt, f"attempt {attempt}")  # type: ignore[misc]
        worker.kill()
        worker.wait()
    job = fleet.wait(job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "worker_lost"


def test_a_cancelled_job_whose_worker_dies_is_cancelled_by_the_sweep(fleet: Fleet) -> None:
    fleet.start("control")
    worker = fleet.start("device")
    job_id = fleet.submit("spin")
    fleet.wait(job_id, JobStatus.RUNNING)
    os.kill(worker.pid, signal.SIGSTOP)
    assert fleet.cancel(job_id) is JobStatus.CANCELLING
    worker.kill()
    assert fleet.wait(job_id).status == "cancelled"


def test_a_worker_that_slept_through_its_lease_writes_nothing_when_it_wakes(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start("control")
    sleeper = fleet.start("device")
    job_id = fleet.submit("finish", gate=str(tmp_path / "gate"))
    fleet.wait(job_id, JobStatus.RUNNING)
    os.kill(sleeper.pid, signal.SIGSTOP)
    fleet.start("device")
    until(lambda: fleet.job(job_id).attempt == 2, "another worker to take the job over")
    os.kill(sleeper.pid, signal.SIGCONT)
    until(lambda: len(fleet.runs_on_disk()) == 1, "the stale attempt to be given up")
    (tmp_path / "gate").touch()
    job = fleet.wait(job_id)
    assert (job.status, job.attempt) == ("succeeded", 2)
    events = fleet.events(job_id)
    assert [event["status"] for event in events if event["type"] == "status"].count("succeeded") == 1
    assert sum(event["type"] == "artifact" for event in events) == 1


def test_a_flushed_broker_delays_queued_jobs_and_loses_none(fleet: Fleet) -> None:
    fleet.start("control")
    fleet.start("device")
    jobs = [fleet.submit("finish") for number in range(8)]
    fleet.valkey.flush()
    more = [fleet.submit("finish") for number in range(8, 10)]
    for job_id in [*jobs, *more]:
        assert fleet.wait(job_id).status == "succeeded"
        assert fleet.statuses(job_id) == ["queued", "running", "succeeded"]


def test_a_broker_that_restarts_empty_delays_jobs_and_loses_none(fleet: Fleet) -> None:
    fleet.start("control")
    fleet.start("device")
    fleet.wait(fleet.submit("finish"))
    fleet.valkey.stop(signal.SIGKILL)
    jobs = [fleet.submit("finish", nudge=False) for number in range(3)]
    time.sleep(0.5)
    fleet.valkey.start()
    for job_id in jobs:
        assert fleet.wait(job_id).status == "succeeded"


def test_jobs_nobody_was_nudged_for_are_found_by_the_sweep(fleet: Fleet) -> None:
    fleet.start("control")
    fleet.start("device")
    jobs = [fleet.submit("finish", nudge=False) for number in range(3)]
    for job_id in jobs:
        assert fleet.wait(job_id).status == "succeeded"


def test_the_sweep_sends_no_more_nudges_than_there_are_free_slots(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start("control")
    fleet.start("device")
    running = fleet.submit("finish", gate=str(tmp_path / "gate"))
    fleet.wait(running, JobStatus.RUNNING)
    waiting = [fleet.submit("finish", nudge=False) for number in range(3)]
    time.sleep(0.5)
    fleet.valkey.client().delete(queue_of("cpu"))  # one may have been sent while the slot was free
    time.sleep(1.5)  # several sweeps
    assert fleet.valkey.client().llen(queue_of("cpu")) == 0
    (tmp_path / "gate").touch()
    for job_id in waiting:
        assert fleet.wait(job_id).status == "succeeded"


def _stop(worker: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> None:
    worker.send_signal(number)
    worker.wait(timeout=30)


@pytest.mark.parametrize(
    ("number", "do"),
    [(signal.SIGTERM, "finish"), (signal.SIGTERM, "defy"), (signal.SIGINT, "spin"), (signal.SIGHUP, "spin")],
)
def test_a_stopping_worker_gives_its_job_back_without_a_strike(
    fleet: Fleet, tmp_path: Path, number: signal.Signals, do: str
) -> None:
    worker = fleet.start("device")
    job_id = fleet.submit(do, gate=str(tmp_path / "gate"))
    fleet.wait(job_id, JobStatus.RUNNING)
    fleet.engine()
    _stop(worker, number)
    assert worker.returncode == 0
    job = fleet.job(job_id)
    assert (job.status, job.attempt, job.strikes, job.lease_expires_at) == ("queued", 1, 0, None)
    assert not fleet.engines()
    assert list(fleet.work.glob("worker-*")) == []
    assert fleet.registered() == []
    if do == "finish":
        (tmp_path / "gate").touch()
        fleet.start("control")
        fleet.start("device")
        assert fleet.wait(job_id).status == "succeeded"


def test_a_worker_stops_in_time_while_its_broker_is_gone(fleet: Fleet, tmp_path: Path) -> None:
    worker = fleet.start("device")
    job_id = fleet.submit("finish", gate=str(tmp_path / "gate"))
    fleet.wait(job_id, JobStatus.RUNNING)
    fleet.valkey.stop(signal.SIGKILL)
    time.sleep(0.5)
    _stop(worker)
    assert fleet.job(job_id).status == "queued"


def test_killing_the_guard_ends_the_engine_and_costs_one_attempt(fleet: Fleet, tmp_path: Path) -> None:
    fleet.start("device")
    job_id = fleet.submit("finish", gate=str(tmp_path / "gate"))
    engine = fleet.engine()
    guard = engine.parent()
    assert guard is not None
    guard.kill()
    until(lambda: not psutil.pid_exists(engine.pid), "the engine to die with its guard", 5.0)
    (tmp_path / "gate").touch()
    job = fleet.wait(job_id)
    assert (job.status, job.strikes) == ("succeeded", 1)


def test_running_jobs_outlast_a_database_that_is_gone_for_longer_than_a_lease(tmp_path: Path, valkey: Valkey) -> None:
    server = Postgres()
    try:
        server.create("gap")
        url = server.url("gap")
        migrate(url)
        with Fleet(tmp_path, url, valkey) as fleet:
            fleet.start("control")
            fleet.start("device")
            job_id = fleet.submit("finish", gate=str(tmp_path / "gate"))
            fleet.wait(job_id, JobStatus.RUNNING)
            server.stop(signal.SIGINT)
            time.sleep(3.0)  # two leases
            (tmp_path / "gate").touch()
            time.sleep(0.5)
            server.start()
            job = fleet.wait(job_id)
            assert (job.status, job.attempt, job.strikes) == ("succeeded", 1, 0)
    finally:
        server.close()


def test_the_folders_of_dead_workers_go_and_those_of_the_living_and_of_strangers_stay(
    fleet: Fleet, tmp_path: Path
) -> None:
    (fleet.work / "a-folder-of-someone-else").mkdir(parents=True)
    living = fleet.start("device")
    orphan = fleet.work / "worker-dead" / "run-1"
    orphan.mkdir(parents=True)
    fleet.start("device")
    assert not orphan.exists()
    assert len(list(fleet.work.glob("worker-*"))) == 2
    assert (fleet.work / "a-folder-of-someone-else").exists()
    assert living.poll() is None
    shutil.rmtree(fleet.work / "a-folder-of-someone-else")
