"""P8, P9, P11, P21: a worker is killed, sleeps, stops; the database is away."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx

from models.statuses import JobStatus
from tests.promises.outcome import Outcome
from tests.promises.place import WORKER, Place
from tests.worker.fleet import until

AGAIN_SECONDS, STOP_SECONDS = 60.0, 30.0


def _running(place: Place, number: int, gate: Path) -> str:
    """A job with a checkpoint that waits for `gate`."""
    seed = 5000 + number
    job_id = place.submit("finish", seed=seed, timeout_s=86400, gate=str(gate), key=place.key(seed))
    until(lambda: any(event["type"] == "checkpoint" for event in place.fleet.events(job_id)), "its checkpoint", 60)
    return job_id


def _goes_on(place: Place, outcome: Outcome, job_id: str) -> None:
    """It made the one checkpoint that a whole run makes, so the last attempt began behind it."""
    made = [event for event in place.fleet.events(job_id) if event["type"] == "checkpoint"]
    outcome.require(len(made) == 1, f"{job_id} did not go on from its checkpoint")


def worker_killed(place: Place, injections: int) -> Outcome:
    """SIGKILL in the middle of a job: another worker goes on with it from its checkpoint."""
    outcome = Outcome(injections)
    fleet = place.fleet
    place.workers(devices=0)
    victim = fleet.start("device", program=WORKER)
    for number in range(injections):
        gate = place.folder / f"gate-{number}"
        job_id = _running(place, number, gate)
        heir = fleet.start("device", program=WORKER)
        killed = time.time()
        victim.kill()
        victim.wait()
        gate.touch()
        place.account(outcome, [job_id], patience=60 + 60 * place.scale)
        outcome.require(fleet.job(job_id).attempt == 2, f"{job_id} has not two attempts")
        _goes_on(place, outcome, job_id)
        outcome.seconds.append(place.started(job_id, 2) - killed)
        victim = heir
    outcome.require_p99(AGAIN_SECONDS, "until another worker had it")
    return outcome


def worker_sleeps_and_wakes(place: Place, injections: int) -> Outcome:
    """SIGSTOP for longer than a lease; another rescues the job; then the sleeper wakes and may write nothing."""
    outcome = Outcome(injections)
    fleet = place.fleet
    place.workers(devices=0)
    workers = [fleet.start("device", program=WORKER)]
    names = {fleet.registered()[-1].id: workers[0]}
    for number in range(injections):
        gate = place.folder / f"gate-{number}"
        job_id = _running(place, number, gate)
        if len(workers) == 1:
            known = {row.id for row in fleet.registered()}
            workers.append(fleet.start("device", program=WORKER))
            names |= {row.id: workers[1] for row in fleet.registered() if row.id not in known}
            names |= {row.id: workers[0] for row in fleet.registered() if row.queue != "control" and row.id in known}
        sleeper = names[fleet.job(job_id).worker_id or ""]
        os.kill(sleeper.pid, signal.SIGSTOP)
        slept = time.time()
        until(lambda: fleet.job(job_id).attempt == 2, "another worker to take the job over", 30 + 60 * place.scale)  # noqa: B023
        os.kill(sleeper.pid, signal.SIGCONT)
        until(lambda: len(fleet.runs_on_disk()) == 1, "the stale attempt to be given up", 30)
        gate.touch()
        place.account(outcome, [job_id])
        outcome.seconds.append(place.started(job_id, 2) - slept)
    return outcome


def worker_stops(place: Place, injections: int) -> Outcome:
    """SIGTERM, as a deploy does: the job is given back, no strike, and the next worker goes on with it."""
    outcome = Outcome(injections)
    fleet = place.fleet
    place.workers(devices=0)
    old = fleet.start("device", program=WORKER)
    for number in range(injections):
        gate = place.folder / f"gate-{number}"
        job_id = _running(place, number, gate)
        new = fleet.start("device", program=WORKER)
        told = time.time()
        old.send_signal(signal.SIGTERM)
        outcome.require(old.wait(timeout=60) == 0, "the worker did not end well")
        outcome.require_in_time(
            time.time() - told < STOP_SECONDS, f"a worker took more than {STOP_SECONDS:g} s to stop"
        )
        gate.touch()
        place.account(outcome, [job_id])
        outcome.require(fleet.job(job_id).strikes == 0, f"{job_id} has a strike")
        _goes_on(place, outcome, job_id)
        outcome.seconds.append(place.started(job_id, 2) - told)
        old = new
    outcome.require_p99(AGAIN_SECONDS, "until another worker had it")
    return outcome


def database_away(place: Place, injections: int) -> Outcome:
    """For two leases, and every tenth time for ten minutes (by the row's clocks), under a running job and the api: 503
    meanwhile, and the same attempt goes on."""
    outcome = Outcome(injections)
    fleet = place.fleet
    place.workers()
    gate = place.folder / "gate"
    job_id = _running(place, 0, gate)
    with httpx.Client(base_url=place.serve(), timeout=30, trust_env=False) as client:
        for number in range(injections):
            place.postgres.stop(signal.SIGINT)
            time.sleep((600 if number % 10 == 1 else 60) * place.scale)
            answer = client.get("/jobs")
            outcome.require(answer.status_code == 503, f"the api answered {answer.status_code}")
            outcome.require("retry-after" in answer.headers, "the api did not say when to come back")
            place.postgres.start()
            back = time.monotonic()
            until(lambda: client.get(f"/jobs/{job_id}").status_code == 200, "the api to come back")
            outcome.seconds.append(time.monotonic() - back)
            time.sleep(60 * place.scale)
            outcome.require(fleet.job(job_id).status == JobStatus.RUNNING, "the job does not run any more")
    gate.touch()
    place.account(outcome, [job_id])
    outcome.require(fleet.job(job_id).attempt == 1, "the job was started again")
    return outcome
