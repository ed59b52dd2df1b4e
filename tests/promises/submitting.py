"""P1 to P4: the api dies, the broker hangs, is gone, or forgets everything."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import httpx
from sqlalchemy import func, select, update

from models import retention
from models.database import now
from models.settings import Settings
from models.tables import Idempotency, Job
from tests.promises.outcome import Outcome
from tests.promises.place import Place

CLIENTS = 32
ANSWER_SECONDS = 1.0
START_SECONDS = 15.0


def client_of(place: Place) -> httpx.Client:
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    return httpx.Client(base_url=place.serve(), timeout=10, trust_env=False, limits=limits)


def acknowledged(client: httpx.Client, document: dict[str, Any], key: str) -> str:
    """Submit until there is an answer; the id of the job."""
    answer = answered(client, "POST", "/jobs", json=document, headers={"Idempotency-Key": key})
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def answered(
    client: httpx.Client, method: str, path: str, *, final: Sequence[int] = (), **content: Any
) -> httpx.Response:
    """Ask until there is an answer, as a client does that lost its connection. `final`: errors that are one."""
    while True:
        try:
            answer = client.request(method, path, **content)
        except httpx.TransportError:
            time.sleep(0.02)
            continue
        if answer.is_success or answer.status_code in final:
            return answer
        if answer.status_code not in (409, 503):
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        time.sleep(0.02)


def api_killed_at_any_moment(place: Place, injections: int) -> Outcome:
    """Clients submit all the while; every id that was answered must come to its end, though nobody asks again."""
    outcome, stop, jobs = Outcome(injections), threading.Event(), list[str]()
    chance = random.Random(1)
    with client_of(place) as client:
        place.workers(devices=2)

        def submit_on() -> None:
            while not stop.is_set():
                try:
                    answer = client.post("/jobs", json=place.document(do="finish"))
                    if answer.status_code == 202:
                        jobs.append(answer.json()["id"])
                except httpx.TransportError:
                    pass  # nothing was acknowledged
                time.sleep(0.1)

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(submit_on) for _ in range(4)]
            for _ in range(injections):
                time.sleep(chance.uniform(0.0, 0.15))
                killed = time.monotonic()
                place.kill_api()
                place.wait_for_life()
                outcome.seconds.append(time.monotonic() - killed)
            time.sleep(0.3)
            stop.set()
            for each in clients:
                each.result()
    outcome.require(bool(jobs), "nothing was acknowledged")
    place.account(outcome, jobs)
    return outcome


def api_killed_between_commit_and_nudge(place: Place, injections: int) -> Outcome:
    """The broker hangs, so that no nudge gets out; the answer does; then the api dies. Only the sweep can know."""
    outcome = Outcome()
    with client_of(place) as client:
        place.workers(devices=1)
        while outcome.injections < injections:
            place.valkey.pause()
            jobs = [
                acknowledged(client, place.document(do="finish"), f"cut-{outcome.injections + number}")
                for number in range(5)
            ]
            place.kill_api()
            killed = time.time()
            place.valkey.resume()
            place.wait_for_life()
            place.account(outcome, jobs)
            outcome.seconds += [place.started(job_id) - killed for job_id in jobs]
            outcome.injections += len(jobs)
    return outcome


def many_clients_with_one_key(place: Place, injections: int) -> Outcome:
    """Each time 32 clients send the same request with the same key while the api is killed among them. A day less a
    minute later the key still stands for the same job; a day later it is forgotten."""
    outcome, jobs = Outcome(injections), list[str]()
    chance = random.Random(2)
    with client_of(place) as client, ThreadPoolExecutor(CLIENTS) as pool:
        for number in range(injections):
            began = time.monotonic()
            answers = [
                pool.submit(acknowledged, client, place.document(do="finish"), f"key-{number}") for _ in range(CLIENTS)
            ]
            time.sleep(chance.uniform(0.0, 0.1))
            place.kill_api()
            place.wait_for_life()
            ids = {answer.result() for answer in answers}
            outcome.seconds.append(time.monotonic() - began)
            outcome.duplicated += len(ids) - 1
            jobs += ids
        _upkeep_of_keys(place, retention.IDEMPOTENCY_LIFETIME - timedelta(minutes=1))
        first = acknowledged(client, place.document(do="finish"), "key-0")
        outcome.require(first in jobs, "within a day the key became another job")
        with place.fleet.database.read() as session:
            stored = session.scalar(select(func.count()).select_from(Job))
        outcome.duplicated += (stored or 0) - len(jobs)
        _upkeep_of_keys(place, retention.IDEMPOTENCY_LIFETIME + timedelta(minutes=1))
        with place.fleet.database.read() as session:
            outcome.require(
                not session.scalar(select(func.count()).select_from(Idempotency)), "keys are never forgotten"
            )
        place.workers(devices=2)
        place.account(outcome, jobs)
    return outcome


def _upkeep_of_keys(place: Place, age: timedelta) -> None:
    """Make every key so old, and let go those that are too old."""
    with place.fleet.database.transaction() as session:
        session.execute(update(Idempotency).values(created_at=now(session) - age))
    retention.expire(place.fleet.database, Settings())


def broker_hung_or_gone(place: Place, injections: int) -> Outcome:
    """By turns it hangs and is not there. Every submit is answered within a second all the same, and its job runs."""
    outcome = Outcome(injections)
    with client_of(place) as client:
        place.workers(devices=2)
        jobs = list[str]()
        for hung in (True, False):
            if hung:
                place.valkey.pause()
            else:
                place.valkey.stop(signal.SIGKILL)
            for _ in range(injections // 2):
                began = time.monotonic()
                answer = client.post("/jobs", json=place.document(do="finish"))
                seconds = time.monotonic() - began
                outcome.require(answer.status_code == 202, answer.text[:200])
                outcome.require_in_time(seconds < ANSWER_SECONDS, f"an answer took {seconds:.2f} s")
                outcome.seconds.append(seconds)
                jobs.append(answer.json()["id"])
            if hung:
                place.valkey.resume()
            else:
                place.valkey.start()
        place.account(outcome, jobs)
    outcome.injections = len(jobs)
    return outcome


def broker_forgets(place: Place, injections: int) -> Outcome:
    """By turns FLUSHALL, and SIGKILL with nothing on disk, each right after a submit and its nudge."""
    outcome = Outcome(injections)
    place.workers(devices=2)
    jobs = list[str]()
    for number in range(injections):
        jobs += [place.submit("finish"), place.submit("finish")]
        forgot = time.time()
        if number % 2:
            place.valkey.stop(signal.SIGKILL)
            place.valkey.start()
        else:
            place.valkey.flush()
        partial = Outcome(1)
        place.account(partial, jobs[-2:])
        outcome.lost += partial.lost
        outcome.duplicated += partial.duplicated
        if not partial.holds:
            outcome.broken.append(f"after {number} times: {[place.moments(job_id) for job_id in jobs[-2:]]}")
            continue
        outcome.seconds.append(max(place.started(job_id) for job_id in jobs[-2:]) - forgot)
    outcome.require_p99(START_SECONDS, "until a job began")
    return outcome
