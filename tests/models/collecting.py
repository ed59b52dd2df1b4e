"""Clients, workers, retention and collectors, in any order of events."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import func, select

from models import attempts, collection, inspections, retention, transitions
from models.blobs import UNNAMED_SECONDS, Blob, FolderBlobs, StoredBlob
from models.database import Database
from models.tables import Base, CondemnedBlob, Dataset, Job, Network, ResumableUpload
from tests.models import machines
from tests.models.rows import ARTIFACT, ERROR, LEASE, REPORT, at, claim, submit

GRACE = timedelta(seconds=1000)
REFERENCES = collection.REFERENCES
CONTENTS = [b"first", b"second", b"third"]
Token = tuple[str, int]
QUICK = settings(machines.QUICK, max_examples=15, stateful_step_count=40)
contents = st.sampled_from(CONTENTS)
numbers = st.integers(0, 7)


class Place(FolderBlobs):
    """A folder whose files are published at the moment of the test's clock."""

    published = 0

    def publish(self, content: bytes, seconds: float) -> Blob:
        with self.writer() as writer:
            writer.write(content)
            blob = writer.publish()
        self.published += 1
        moment = int(at(seconds).timestamp()) * 10**9 + self.published
        os.utime(self.path(blob.sha256), ns=(moment, moment))
        return blob


class CollectionMachine(RuleBasedStateMachine):
    """Clients, workers, retention, and collectors, one of which is stopped between any two of its steps."""

    database: ClassVar[Database]
    seconds: ClassVar[list[float]]
    """What each collection took."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.blobs = Place(Path(self.folder.name), keep_free_bytes=0)
        self.unnamed: list[tuple[float, Blob]] = []
        self.held: dict[Token, list[Blob]] = {}
        self.seen: list[StoredBlob] = []
        self.due: list[tuple[str, str]] = []
        self.steps = 0
        with self.database.transaction() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())

    @rule(seconds=st.sampled_from([10, UNNAMED_SECONDS - 20, 1001, 2500]), is_alive=st.booleans())
    def time_passes(self, seconds: float, is_alive: bool = True) -> None:
        """The worker goes on beating, or its lease runs out."""
        self.clock += seconds
        with self.database.transaction() as session:
            if is_alive and self.held:
                attempts.beat(session, *self.token(0), at(self.clock + LEASE), at(self.clock))
            transitions.sweep(session, max_strikes=3, now=at(self.clock))

    @rule(content=contents)
    def publish_and_die_or_name_it_later(self, content: bytes) -> None:
        self.unnamed.append((self.clock, self.blobs.publish(content, self.clock)))

    @rule(content=contents, table=st.sampled_from([Network, Dataset]))
    def publish_and_name(self, content: bytes, table: Any) -> None:
        self.publish_and_die_or_name_it_later(content)
        self.name(-1, table)

    @rule(which=numbers, table=st.sampled_from([Network, Dataset]))
    def name(self, which: int, table: Any) -> None:
        in_time = [blob for moment, blob in self.unnamed if self.clock - moment <= UNNAMED_SECONDS]
        if in_time:
            blob = in_time[which % len(in_time)]
            with self.database.transaction() as session:
                inspections.add_upload(session, table, tenant="a", name="n", blob=blob, now=at(self.clock))

    @rule(content=contents)
    def complete_a_resumable_upload(self, content: bytes) -> None:
        """Its row names the bytes before they are published."""
        with self.database.transaction() as session:
            session.add(
                ResumableUpload(
                    id=f"upl_{self.blobs.published}",
                    tenant="a",
                    name="n",
                    size_bytes=len(content),
                    sha256=hashlib.sha256(content).hexdigest(),
                    status="complete",
                    created_at=at(self.clock),
                    expires_at=at(self.clock + 10_000),
                )
            )
        self.blobs.publish(content, self.clock)

    @rule(table=st.sampled_from([Network, Dataset, ResumableUpload]), which=numbers)
    def delete_an_upload(self, table: Any, which: int) -> None:
        with self.database.transaction() as session:
            used = select(Job.network_id)
            rows = session.scalars(select(table.id).where(table.id.not_in(used)).order_by(table.created_at)).all()
            if rows:
                session.delete(session.get_one(table, rows[which % len(rows)]))

    @rule()
    def start_a_job(self) -> None:
        """One at a time: while a job is held, nothing that was published since is collected."""
        with self.database.transaction() as session:
            if session.scalar(select(Job.id).where(Job.status == "running").limit(1)) is not None:
                return
            submit(session, seconds=self.clock)
            job = claim(session, seconds=self.clock)
            assert job is not None
            network = session.get_one(Network, job.network_id)
            network.sha256 = self.blobs.publish(CONTENTS[0], self.clock).sha256
        self.held[job.id, job.attempt] = []

    @rule(content=contents, which=numbers)
    def publish_an_artifact_that_success_will_name(self, content: bytes, which: int) -> None:
        if self.held:
            self.held[self.token(which)].append(self.blobs.publish(content, self.clock))

    @rule(content=contents, which=numbers)
    def keep_a_checkpoint(self, content: bytes, which: int) -> None:
        if self.held:
            token = self.token(which)
            blob = self.blobs.publish(content, self.clock)
            with self.database.transaction() as session:
                attempts.add_checkpoint(
                    session, *token, key="k" * 64, step_index=0, sha256=blob.sha256, size_bytes=1, now=at(self.clock)
                )

    @rule(which=numbers, end=st.sampled_from(["succeed", "fail", "strike"]))
    def end_an_attempt(self, which: int, end: str) -> None:
        """Tokens stay in hand after their attempt is over: a stale one must name nothing."""
        if not self.held:
            return
        token = self.token(which)
        files = [
            replace(ARTIFACT, name=str(number), sha256=blob.sha256) for number, blob in enumerate(self.held[token])
        ]
        with self.database.transaction() as session:
            match end:
                case "succeed":
                    transitions.succeed(session, *token, REPORT, files, at(self.clock))
                case "fail":
                    for file in files:
                        attempts.add_artifact(session, *token, file)
                    transitions.fail(session, *token, ERROR, at(self.clock))
                case _:
                    transitions.strike(session, *token, ERROR, 3, at(self.clock))

    @rule()
    def claim_again(self) -> None:
        with self.database.transaction() as session:
            held = session.scalar(select(Job.id).where(Job.status == "running").limit(1))
            job = None if held else claim(session, seconds=self.clock)
        if job is not None:
            self.held[job.id, job.attempt] = []

    @rule(jobs=st.booleans())
    def expire(self, jobs: bool) -> None:
        with self.database.transaction() as session:
            if jobs:
                retention.expire_jobs(session, at(self.clock - 2000))
            else:
                retention.expire_checkpoints(session, at(self.clock - 2000))

    @rule(is_alive=st.booleans())
    def collect_a_grace_later(self, is_alive: bool) -> None:
        self.time_passes(1001, is_alive)
        self.collect()

    @rule()
    def collect(self) -> None:
        began = time.monotonic()
        collection.collect(self.database, self.blobs, grace=GRACE, clock=lambda session: at(self.clock))
        self.seconds.append(time.monotonic() - began)

    @rule()
    def the_slow_collector_takes_its_next_step(self) -> None:
        steps = [
            self.the_slow_collector_looks,
            self.the_slow_collector_judges,
            self.the_slow_collector_takes,
            self.the_slow_collector_deletes,
        ]
        steps[self.steps % 4]()
        self.steps += 1

    def the_slow_collector_looks(self) -> None:
        with self.database.read() as session:
            before = collection.published_before(session, GRACE, at(self.clock))
        self.seen = [stored for stored in self.blobs.scan() if stored.published_at < before]

    def the_slow_collector_judges(self) -> None:
        with self.database.transaction() as session:
            collection.judge(session, self.seen, at(self.clock))

    def the_slow_collector_takes(self) -> None:
        with self.database.transaction() as session:
            self.due += collection.take_due(session, at(self.clock) - GRACE)

    def the_slow_collector_deletes(self) -> None:
        for sha256, version in self.due:
            self.blobs.delete(sha256, version=version)
        self.due = []

    @invariant()
    def whatever_is_named_is_there(self) -> None:
        stored = {blob.sha256 for blob in self.blobs.scan()}
        with self.database.read() as session:
            for column in REFERENCES:
                named = set(session.scalars(select(column).where(column.is_not(None))))
                assert named - {"0" * 64} <= stored, column

    def token(self, which: int) -> Token:
        """Mostly the newest; the others are stale."""
        return list(self.held)[-1 if which < 6 else 0]

    def teardown(self) -> None:
        """Nothing stays for ever: once all rows are gone, two rounds later so are all bytes."""
        with self.database.transaction() as session:
            for table in reversed(Base.metadata.sorted_tables):
                if table.name != "condemned_blobs":
                    session.execute(table.delete())
        for _ in range(3):
            self.clock += GRACE.total_seconds() + 1
            self.collect()
        assert list(self.blobs.scan()) == []
        with self.database.read() as session:
            assert session.scalar(select(func.count()).select_from(CondemnedBlob)) == 0
        self.folder.cleanup()


def machine_on(database: Database) -> type[CollectionMachine]:
    return type("Machine", (CollectionMachine,), {"database": database, "seconds": []})
