"""P7, P10, P18: an engine dies, freezes, is cancelled."""

from __future__ import annotations

import random
import signal
import time

import httpx

from models.statuses import JobStatus
from tests.promises.outcome import Outcome
from tests.promises.place import Place
from tests.promises.quick_engine import PHASES
from tests.worker.fleet import until

SEEN_SECONDS = 2.0
GONE_SECONDS = 20.0
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)


def _error(place: Place, job_id: str) -> tuple[str, str]:
    error = place.fleet.job(job_id).error or {}
    return str(error.get("code")), str(error.get("message"))


def engine_dies_once(place: Place, injections: int) -> Outcome:
    """In each phase, of each signal. The next attempt goes on from the checkpoint and succeeds."""
    outcome = Outcome(injections)
    place.workers(devices=2)
    jobs = []
    for number in range(injections):
        phase, death, seed = PHASES[number // 4 % len(PHASES)], str(SIGNALS[number % 4].value), 1000 + number
        jobs.append(place.submit("die", seed=seed, once="1", key=place.key(seed), signal=death, phase=phase))
    place.account(outcome, jobs)
    for job_id in jobs:
        again = [at for status, attempt, at in place.moments(job_id) if (status, attempt) == ("running", 2)]
        outcome.require(len(again) == 1, f"{job_id} has not two attempts")
        outcome.seconds += [again[0] - died for died in place.died(job_id)[:1] if again]
    return outcome


def engine_always_dies(place: Place, injections: int) -> Outcome:
    """Three attempts, then `failed` with the name of the signal and the peak memory."""
    outcome = Outcome()
    place.workers(devices=2)
    deaths = [(SIGNALS[number % 4], PHASES[number % len(PHASES)]) for number in range((injections + 2) // 3)]
    jobs = [place.submit("die", signal=str(number.value), phase=phase) for number, phase in deaths]
    place.account(outcome, jobs, JobStatus.FAILED)
    for job_id, (number, _) in zip(jobs, deaths, strict=True):
        code, message = _error(place, job_id)
        outcome.require(code == "engine_crashed" and number.name in message and "MiB" in message, message)
        deaths_seen = [at for status, _, at in place.moments(job_id) if status in ("queued", "failed")][1:]
        died = place.died(job_id)
        outcome.require(len(died) == len(deaths_seen) == 3, f"{job_id} was tried {len(died)} times")
        outcome.seconds += [seen - at for seen, at in zip(deaths_seen, died, strict=False)]
        outcome.injections += len(died)
    outcome.require_p99(SEEN_SECONDS, "until a death was seen")
    return outcome


def engine_takes_all_memory(place: Place, injections: int) -> Outcome:
    """It fails, says so, and the worker takes the next job."""
    outcome = Outcome(injections)
    place.workers()
    for _ in range(injections):
        job_id = place.submit("devour")
        began = time.monotonic()
        place.account(outcome, [job_id], JobStatus.FAILED)
        outcome.seconds.append(time.monotonic() - began)
        code, message = _error(place, job_id)
        outcome.require(code == "out_of_memory", f"{code}: {message}")
    place.account(outcome, [place.submit("finish")])
    return outcome


def engine_freezes(place: Place, injections: int) -> Outcome:
    """SIGSTOP: ended after the stall timeout, or at the deadline of the job, whichever comes first."""
    outcome = Outcome(injections)
    place.workers(devices=2)
    jobs = [place.submit("freeze", timeout_s=1 if number % 2 else 120) for number in range(injections)]
    place.account(outcome, jobs, JobStatus.FAILED)
    for number, job_id in enumerate(jobs):
        code, message = _error(place, job_id)
        outcome.require(code == ("timeout" if number % 2 else "stalled"), f"{code}: {message}")
        ended = place.moments(job_id)[-1][2]
        outcome.seconds += [ended - died for died in place.died(job_id)]
    return outcome


def cancel_against_success(place: Place, injections: int) -> Outcome:
    """A cancel at any moment of a short job: what it was told must be what becomes of the job. One that was cancelled
    before it ran never runs."""
    outcome = Outcome(injections)
    place.workers(devices=2)
    chance = random.Random(3)
    kinds = set()
    with httpx.Client(base_url=place.serve(), timeout=30, trust_env=False) as client:
        for _ in range(injections):
            job_id = place.submit("finish", work="0.02")
            time.sleep(chance.uniform(0.0, 0.5))
            asked = time.monotonic()
            answer = client.post(f"/jobs/{job_id}/cancel")
            lost_to_success = answer.status_code == 409 and answer.json()["where"] == JobStatus.SUCCEEDED
            outcome.require(lost_to_success or answer.status_code == 202, answer.text[:200])
            place.account(outcome, [job_id], JobStatus.SUCCEEDED if lost_to_success else JobStatus.CANCELLED)
            statuses = place.fleet.statuses(job_id)
            ran = JobStatus.RUNNING in statuses
            kinds.add((lost_to_success, ran))
            if not lost_to_success:
                outcome.seconds.append(time.monotonic() - asked)
                outcome.require(ran == (JobStatus.CANCELLING in statuses), f"a cancelled job was {statuses}")
    outcome.require_p99(GONE_SECONDS, "until it was cancelled")
    if injections >= 50:
        outcome.require(len(kinds) == 3, f"not every race was run: {kinds}")
    return outcome


def cancel_of_one_that_defies(place: Place, injections: int) -> Outcome:
    """It ignores SIGTERM and has a grandchild in a session of its own: all are gone after the grace."""
    outcome = Outcome(injections)
    place.workers()
    for _ in range(injections):
        job_id = place.submit("defy")
        until(lambda: len(place.fleet.engines()) >= 3, "guard, engine and grandchild")
        asked = time.monotonic()
        place.fleet.cancel(job_id)
        until(lambda: not place.fleet.engines(), "all of them to be gone")
        outcome.seconds.append(time.monotonic() - asked)
        place.account(outcome, [job_id], JobStatus.CANCELLED)
    outcome.require_p99(GONE_SECONDS, "until all of it was gone")
    return outcome
