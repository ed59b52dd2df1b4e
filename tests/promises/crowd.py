"""P25, P26: ten thousand jobs wait, a thousand people watch, one tenant floods."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from datetime import timedelta

import httpx
from sqlalchemy import func, insert, select

from models import transitions
from models.database import now
from models.ids import new_id
from models.spec import Spec
from models.statuses import JobStatus
from models.tables import Job, dump
from tests.promises.outcome import Outcome
from tests.promises.place import Place
from tests.worker.fleet import until

QUEUED = 10_000
TENANTS = 20
CLAIM_SECONDS, LIST_SECONDS = 0.05, 0.2
QUOTA = 3


def fill(place: Place) -> None:
    """`QUEUED` jobs of `TENANTS` tenants; tenant `t`, whose the api is, has its share."""
    spec = Spec.model_validate(place.document(do="finish"))
    progress = {"percent": 0.0, "step_index": None, "step_count": 1, "epoch": None, "epochs": None, "eta_seconds": None}
    with place.fleet.database.transaction() as session:
        moment = now(session)
        common = {
            "network_id": place.fleet.network_id,
            "spec": dump(spec, as_given=True),
            "resolved_spec": dump(spec),
            "device": "auto",
            "status": "queued",
            "progress": progress,
            "attempt": 0,
            "strikes": 0,
            "event_count": 0,
        }
        rows = []
        for number in range(QUEUED):
            at = moment - timedelta(seconds=QUEUED - number)
            tenant = "t" if number % TENANTS == 0 else f"t{number % TENANTS}"
            rows.append(common | {"id": new_id("job"), "tenant": tenant, "created_at": at, "changed_at": at})
        for first in range(0, QUEUED, 500):  # a database drops who is silent in a transaction for long
            session.execute(insert(Job), rows[first : first + 500])


def _each(count: int, do: Callable[[], object]) -> list[float]:
    seconds = []
    for _ in range(count):
        began = time.monotonic()
        do()
        seconds.append(time.monotonic() - began)
    return seconds


def claim_among_ten_thousand(place: Place, injections: int) -> Outcome:
    fill(place)
    taken: list[str] = []

    def claim() -> None:
        with place.fleet.database.transaction() as session:
            moment = now(session)
            lease = moment + timedelta(seconds=60)
            job = transitions.claim(session, device_class="cpu", worker_id="w", lease_until=lease, now=moment)
            assert job is not None
            taken.append(job.id)

    outcome = Outcome(injections, seconds=_each(injections, claim))
    outcome.duplicated = len(taken) - len(set(taken))
    outcome.require_p99(CLAIM_SECONDS, "a claim")
    return outcome


def list_among_ten_thousand(place: Place, injections: int) -> Outcome:
    """Pages of fifty, each after the one before."""
    fill(place)
    outcome, cursor = Outcome(injections), list[str | None]([None])
    seen: list[str] = []
    with httpx.Client(base_url=place.serve(), timeout=30, trust_env=False) as client:

        def page() -> None:
            asked = {"limit": "50"} | ({"after": cursor[0]} if cursor[0] else {})
            answer = client.get("/jobs", params=asked).raise_for_status().json()
            seen.extend(job["id"] for job in answer["data"])
            cursor[0] = answer["next_cursor"]

        outcome.seconds = _each(injections, page)
    whole_rounds = injections * 50 // (QUEUED // TENANTS)
    outcome.duplicated = 0 if whole_rounds else len(seen) - len(set(seen))
    outcome.require_p99(LIST_SECONDS, "a page")
    return outcome


def submit_among_ten_thousand(place: Place, injections: int) -> Outcome:
    fill(place)
    jobs: list[str] = []
    with httpx.Client(base_url=place.serve(), timeout=30, trust_env=False) as client:

        def submit() -> None:
            answer = client.post("/jobs", json=place.document(do="finish")).raise_for_status()
            jobs.append(answer.json()["id"])

        outcome = Outcome(injections, seconds=_each(injections, submit))
    with place.fleet.database.read() as session:
        outcome.lost = injections - (session.scalar(select(func.count()).where(Job.id.in_(jobs))) or 0)
    return outcome


def one_tenant_floods(place: Place, injections: int) -> Outcome:
    """Two workers, two tenants: while the flood runs, each job of the other starts within two starts of the flood's."""
    outcome = Outcome(injections)
    flood = [place.submit("finish") for _ in range(4 * injections)]
    few = [place.submit("finish") for _ in range(injections)]
    with place.fleet.database.transaction() as session:
        for job_id in few:
            session.get_one(Job, job_id).tenant = "quiet"
    place.workers(devices=2)
    place.account(outcome, flood + few)
    starts = sorted((place.started(job_id), job_id in few) for job_id in flood + few)
    in_a_row, waiting = 0, len(few)
    for _, is_quiet in starts:
        in_a_row = 0 if is_quiet else in_a_row + 1
        waiting -= is_quiet
        outcome.require(in_a_row <= 2 or not waiting, "the flood had three starts in a row while the other waited")
    outcome.seconds = [at - starts[0][0] for at, is_quiet in starts if is_quiet]
    workers = {place.fleet.job(job_id).worker_id for job_id in flood}
    outcome.require(len(workers) == 2, "one worker did everything")
    _beyond_its_quota(place, outcome)
    return outcome


def _beyond_its_quota(place: Place, outcome: Outcome) -> None:
    """With nobody to work, more than may wait is refused, with a time to come back."""
    for worker in place.fleet.workers:
        worker.kill()
        worker.wait()
    [flooding] = place.keys("t")
    api = place.served(max_queued_jobs=QUOTA)
    with api.with_key(flooding) as client:
        answers = [client.post("/jobs", json=place.document(do="finish")) for _ in range(2 * QUOTA)]
    outcome.require([each.status_code for each in answers] == [202] * QUOTA + [429] * QUOTA, str(answers))
    outcome.require(all(int(each.headers["retry-after"]) >= 1 for each in answers[QUOTA:]), "no time to come back")


def many_watch_one_job(place: Place, injections: int) -> Outcome:
    """Each watcher has a stream of its own, and hears of the end."""
    outcome = Outcome(injections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2 * injections + 500)), hard))
    place.serve()
    job_id = place.submit("finish")
    port = int(place.url.rpartition(":")[2])

    async def watch(ready: asyncio.Semaphore) -> float | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        headers = f"Host: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n"
        writer.write(f"GET /jobs/{job_id}/events HTTP/1.1\r\n{headers}\r\n".encode())
        heard = b""
        while b"queued" not in heard:
            piece = await reader.read(65536)
            if not piece:
                return None
            heard += piece
        ready.release()
        while b'"cancelled"' not in heard:
            piece = await reader.read(65536)
            if not piece:
                return None
            heard += piece
        at = time.monotonic()
        writer.close()
        return at

    async def crowd() -> tuple[float, list[float | None]]:
        ready = asyncio.Semaphore(0)
        watchers = [asyncio.create_task(watch(ready)) for _ in range(injections)]
        for _ in range(injections):
            await asyncio.wait_for(ready.acquire(), 120)
        asked = time.monotonic()
        place.fleet.cancel(job_id)
        return asked, await asyncio.wait_for(asyncio.gather(*watchers), 120)

    asked, heard = asyncio.run(crowd())
    outcome.lost = sum(at is None for at in heard)
    outcome.seconds = [at - asked for at in heard if at is not None]
    until(lambda: place.fleet.job(job_id).status == JobStatus.CANCELLED, "the end of the job")
    return outcome
