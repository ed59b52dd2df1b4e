"""P21: everything is replaced under load, one process after the other, as a rolling deploy does it."""

from __future__ import annotations

import itertools
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import func, select

from modelpress import Client
from modelpress import Job as Submitted
from models.statuses import JobStatus
from models.tables import Job
from tests.promises.outcome import Outcome
from tests.promises.place import WORKER, Place
from tests.worker.fleet import until

KINDS = ("api", "control", "device") * 2
CLIENTS = 4
WORK_SECONDS = 1.0
ARTIFACT_BYTES = 8 << 20
EXIT_SECONDS = 30.0
STOP_SECONDS = 60.0
ENOUGH = 2 * len(KINDS)
"""One job may be in its last moments when its worker is told to stop, four are not."""


def rolling_restart(place: Place, injections: int) -> Outcome:
    """Each process in turn is told to stop, waited for and replaced, while people submit, watch and download with the
    published client, which may raise nothing: whatever it sees it has to mend by itself."""
    outcome = Outcome(injections)
    stop, jobs = threading.Event(), list[str]()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as address, ThreadPoolExecutor(len(KINDS)) as pool:
        running = deque(zip(KINDS, pool.map(lambda kind: _start(place, kind, address), KINDS), strict=True))
        until(lambda: len(place.fleet.registered()) == len(KINDS) - KINDS.count("api"), "all workers to register", 60)
        url = f"http://127.0.0.1:{address.getsockname()[1]}"
        people = [pool.submit(_submit_on, place, url, number, stop, jobs) for number in range(CLIENTS)]
        try:
            for _ in range(injections):
                kind, old = running.popleft()
                if kind == "device":
                    until(lambda: _busy(place) == KINDS.count("device"), "every device worker to be at work", 60)
                told = time.monotonic()
                old.send_signal(signal.SIGTERM)
                status = old.wait(timeout=STOP_SECONDS)
                outcome.seconds.append(time.monotonic() - told)
                outcome.require(status in (0, -signal.SIGTERM), f"{kind} ended with {status}")
                running.append((kind, _start(place, kind, address)))
        finally:
            stop.set()
            for person in people:
                outcome.require((problem := person.exception()) is None, f"a client saw {problem!r}")
    outcome.require_in_time(max(outcome.seconds) < EXIT_SECONDS, f"a process took {max(outcome.seconds):.0f} s to end")
    place.account(outcome, jobs)
    with place.fleet.database.read() as session:
        rows = session.scalars(select(Job)).all()
    outcome.duplicated += len(rows) - len(jobs)
    outcome.require(all(row.strikes == 0 for row in rows), "a job has a strike, though nothing failed")
    if injections >= ENOUGH:
        outcome.require(any(row.attempt > 1 for row in rows), "no worker that stopped had a job under way")
    return outcome


def _start(place: Place, kind: str, address: socket.socket) -> subprocess.Popen[bytes]:
    return place.share(address) if kind == "api" else place.fleet.start(kind, program=WORKER)


def _busy(place: Place) -> int:
    """How many workers run a job."""
    with place.fleet.database.read() as session:
        at_work = select(func.count(Job.worker_id.distinct())).where(Job.status == JobStatus.RUNNING)
        return session.scalar(at_work) or 0


def _submit_on(place: Place, url: str, number: int, stop: threading.Event, jobs: list[str]) -> None:
    """One job after the other: submit, or clone the one before; watch it to its end; fetch what it gave."""
    with Client(url) as client, tempfile.TemporaryDirectory(dir=place.folder) as folder:

        def followed(job: Submitted) -> Submitted:
            jobs.append(job.id)
            if job.wait().status != JobStatus.SUCCEEDED:
                raise AssertionError(f"{job.id} {job.status}: {job.error}")
            job.download(folder)
            return job

        for seed in itertools.count(1_000_000 * (number + 1), 2):
            if stop.is_set():
                return
            last = followed(client.jobs.create(**_document(place, seed)))
            followed(last.clone(**_document(place, seed + 1)))


def _document(place: Place, seed: int) -> dict[str, Any]:
    given = {"do": "finish", "work": str(WORK_SECONDS), "artifact_bytes": str(ARTIFACT_BYTES)}
    return place.document(seed, key=place.key(seed), **given)
