"""P13, P15: a disk that is full, a process that dies at any byte of a publish."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
from sqlalchemy import select

from models.blobs import FolderBlobs
from models.statuses import JobStatus
from models.tables import Artifact, Network
from tests.api.stories import a_pt2
from tests.promises.outcome import Outcome
from tests.promises.place import Place, full_disk
from tests.worker.fleet import until

MEGABYTE = 1 << 20
KEPT_FREE = 64 * MEGABYTE
"""`FolderBlobs` leaves this much."""


def upload_to_a_full_disk(place: Place, injections: int) -> Outcome:
    """By turns the disk is full at the start, and half-way. 507 `disk_full`, nothing stays, and later the file fits."""
    outcome = Outcome(injections)
    body = a_pt2(os.urandom(3 * MEGABYTE))
    blobs = place.folder / "blobs"

    def half_way(until_answered: ExitStack) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        until_answered.enter_context(full_disk(blobs, 100_000))
        yield body[len(body) // 2 :]

    with httpx.Client(base_url=place.serve(), timeout=30, trust_env=False) as client:

        def upload(content: bytes | Iterator[bytes]) -> httpx.Response:
            return client.post("/models", params={"name": "n"}, content=content)

        for number in range(injections):
            if number % 2:
                with ExitStack() as until_answered:
                    answer = upload(half_way(until_answered))
            else:
                with full_disk(blobs, KEPT_FREE):
                    answer = upload(body)
            outcome.require(answer.status_code == 507 and "disk_full" in answer.text, answer.text[:200])
            until(lambda: not list(place.staged()), "nothing to be staged")
            began = time.monotonic()
            answer = upload(body)
            outcome.seconds.append(time.monotonic() - began)
            outcome.require(answer.status_code == 201, answer.text[:200])
            if answer.status_code == 201:
                outcome.lost += not place.fleet.blobs.verify(answer.json()["sha256"])
                client.delete(f"/models/{answer.json()['id']}")
                place.fleet.blobs.delete(answer.json()["sha256"])
    return outcome


def job_on_a_full_disk(place: Place, injections: int) -> Outcome:
    """A checkpoint that finds no room costs nothing; an artifact that finds none fails the job; then all is well."""
    outcome = Outcome()
    place.workers()
    blobs = place.folder / "blobs"
    for number in range(0, injections, 2):
        seed = 7000 + number
        big = str(3 * MEGABYTE)
        with full_disk(blobs, KEPT_FREE + 2 * MEGABYTE):
            jobs = [place.submit("finish", seed=seed, key=place.key(seed), checkpoint_bytes=big)]
            place.account(outcome, jobs)
            failing = [place.submit("finish", artifact_bytes=big)]
            place.account(outcome, failing, JobStatus.FAILED)
            error = place.fleet.job(failing[0]).error or {}
            outcome.require(error.get("code") == "disk_full", str(error))
            outcome.require("is not kept" in place.fleet.log(jobs[0]), "nothing was said of the lost checkpoint")
            with place.fleet.database.read() as session:
                given = session.scalars(select(Artifact.sha256).where(Artifact.job_id == failing[0])).all()
            outcome.lost += sum(not place.fleet.blobs.verify(sha256) for sha256 in given)
        began = time.monotonic()
        place.account(outcome, [place.submit("finish", artifact_bytes=big)])
        outcome.seconds.append(time.monotonic() - began)
        outcome.injections += 2
    return outcome


def killed_while_publishing(place: Place, injections: int) -> Outcome:
    """Every file in the store is whole, every row has its file, and what the dead left behind is cleared away."""
    outcome = Outcome(injections)
    chance = random.Random(4)
    folder = place.folder / "published"
    publisher = subprocess.Popen(
        [sys.executable, "-m", "tests.promises.publisher", str(folder), str(place.fleet.database.engine.url)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert publisher.stdout is not None
    store = FolderBlobs(folder)
    try:
        for _ in range(injections):
            while not (line := publisher.stdout.readline()).startswith("life"):
                assert line, "the publisher ended"
            for _ in range(chance.randrange(3)):
                publisher.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.05))
            os.kill(int(line.split()[1]), signal.SIGKILL)
    finally:
        publisher.kill()
        publisher.wait()
    whole = 0
    for path in folder.rglob("*"):
        if path.is_file() and len(path.name) == 64 and path.parent != store.staging:
            whole += 1
            outcome.lost += hashlib.sha256(path.read_bytes()).hexdigest() != path.name
    with place.fleet.database.read() as session:
        named = session.scalars(select(Network.sha256).where(Network.tenant == "publisher")).all()
    outcome.lost += sum(not store.verify(sha256) for sha256 in named)
    outcome.require(whole > 0 and len(named) > 0, "nothing was published")
    began = time.monotonic()
    store.clean(older_than_seconds=0)
    outcome.seconds.append(time.monotonic() - began)
    outcome.lost += sum(1 for path in store.staging.iterdir() if path.name != ".lock")
    return outcome
