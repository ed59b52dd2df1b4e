"""Collection against everybody who names bytes: any order of events, real threads, and a process killed half-way."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import func, select, true
from sqlalchemy.orm import Session

from models import attempts, collection, inspections, retention, transitions
from models.blobs import UNNAMED_SECONDS, Blob, FolderBlobs, StoredBlob
from models.database import Database
from models.errors import Code, Failure
from models.tables import Base, CondemnedBlob, Dataset, Job, Network, ResumableUpload
from tests.models import machines
from tests.models.rows import ARTIFACT, ERROR, LEASE, REPORT, at, claim, submit
from tests.models.test_transitions import together

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
        collection.collect(self.database, self.blobs, grace=GRACE, clock=lambda session: at(self.clock))

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
    return type("Machine", (CollectionMachine,), {"database": database})


def test_no_order_of_events_loses_bytes_that_a_row_names(database: Database) -> None:
    run_state_machine_as_test(machine_on(database), settings=QUICK)


def without_held_jobs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(collection, "published_before", lambda session, grace, now: now - grace)


def an_artifact_waits_for_success(machine: CollectionMachine) -> None:
    machine.start_a_job()
    machine.publish_an_artifact_that_success_will_name(CONTENTS[2], 0)
    for _ in range(2):
        machine.time_passes(1001)
        machine.collect()
    machine.end_an_attempt(0, "succeed")


def without_versions(patch: pytest.MonkeyPatch) -> None:
    whole = FolderBlobs.delete
    patch.setattr(FolderBlobs, "delete", lambda self, sha256, *, version: whole(self, sha256))


def condemned_bytes_are_published_again(machine: CollectionMachine) -> None:
    machine.publish_and_die_or_name_it_later(CONTENTS[1])
    machine.time_passes(1001)
    machine.collect()
    machine.time_passes(1001)
    machine.the_slow_collector_takes()
    machine.publish_and_die_or_name_it_later(CONTENTS[1])
    machine.name(0, Network)
    machine.the_slow_collector_deletes()


def without_networks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(collection, "REFERENCES", collection.REFERENCES[1:])


def a_network_grows_old(machine: CollectionMachine) -> None:
    machine.publish_and_die_or_name_it_later(CONTENTS[1])
    machine.name(0, Network)
    for _ in range(2):
        machine.time_passes(1001)
        machine.collect()


def without_grace(patch: pytest.MonkeyPatch) -> None:
    taken = collection.take_due
    patch.setattr(collection, "published_before", lambda session, grace, now: now + timedelta(1))
    patch.setattr(collection, "take_due", lambda session, before: taken(session, before + GRACE))


def bytes_are_named_a_little_later(machine: CollectionMachine) -> None:
    machine.publish_and_die_or_name_it_later(CONTENTS[1])
    machine.collect()
    machine.name(0, Dataset)


def without_a_second_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(collection, "_nobody_names", true)


def condemned_bytes_are_named_before_they_go(machine: CollectionMachine) -> None:
    machine.publish_and_die_or_name_it_later(CONTENTS[1])
    machine.time_passes(1001)
    machine.the_slow_collector_looks()
    machine.the_slow_collector_judges()
    machine.time_passes(1001)
    with machine.database.transaction() as session:  # by a row that another one vouched for
        named(session, Blob(machine.seen[0].sha256, 6))
    machine.the_slow_collector_takes()
    machine.the_slow_collector_deletes()


@pytest.mark.parametrize(
    ("story", "forget"),
    [
        (an_artifact_waits_for_success, without_held_jobs),
        (condemned_bytes_are_published_again, without_versions),
        (a_network_grows_old, without_networks),
        (bytes_are_named_a_little_later, without_grace),
        (condemned_bytes_are_named_before_they_go, without_a_second_look),
    ],
)
def test_each_guard_is_needed(database: Database, monkeypatch: pytest.MonkeyPatch, story: Any, forget: Any) -> None:
    machine = machine_on(database)()
    story(machine)
    machine.whatever_is_named_is_there()
    machine.teardown()
    forget(monkeypatch)
    machine = machine_on(database)()
    story(machine)
    with pytest.raises(AssertionError):
        machine.whatever_is_named_is_there()
    machine.folder.cleanup()


def test_a_guard_that_is_gone_is_noticed_by_chance_too(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_networks(monkeypatch)
    database = Database(sqlite_url)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine_on(database), settings=settings(QUICK, max_examples=500))
    database.close()


def test_every_column_that_names_bytes_is_asked() -> None:
    about_other_bytes = {"idempotency.body_sha256", "keys.secret_sha256", "uploads.expected_sha256"}
    columns = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if "sha256" in column.name
    }
    asked = {str(column.property.columns[0]) for column in collection.REFERENCES}
    assert columns - about_other_bytes - {"condemned_blobs.sha256"} == asked


def named(session: Session, blob: Blob) -> Network:
    row = inspections.add_upload(session, Network, tenant="a", name="n", blob=blob, now=at(0))
    assert isinstance(row, Network)
    return row


def test_bytes_are_condemned_a_grace_before_they_are_deleted_and_a_new_row_revives_them(
    database: Database, tmp_path: Path
) -> None:
    blobs = Place(tmp_path, keep_free_bytes=0)
    blob = blobs.publish(b"content", 0)

    def collect(seconds: float) -> collection.Collected:
        return collection.collect(database, blobs, grace=GRACE, clock=lambda session: at(seconds))

    assert collect(1000) == (0, 0, 0)
    assert collect(1001) == (1, 0, 0)
    assert collect(2000) == (0, 0, 0)
    with database.transaction() as session:
        row = named(session, blob)
    assert collect(2001) == (0, 1, 0)
    assert collect(9000) == (0, 0, 0)
    with database.transaction() as session:
        session.delete(session.get_one(Network, row.id))
    assert collect(9001) == (1, 0, 0)
    assert blobs.verify(blob.sha256)
    assert collect(10_001) == (0, 0, 1)
    assert not blobs.verify(blob.sha256)


def test_a_collector_killed_before_it_deletes_leaves_bytes_to_the_next(database: Database, tmp_path: Path) -> None:
    blobs = Place(tmp_path, keep_free_bytes=0)
    blobs.publish(b"content", 0)
    with database.transaction() as session:
        collection.judge(session, list(blobs.scan()), at(2000))
        assert len(collection.take_due(session, at(2000))) == 1
    clock = 5000.0

    def collect() -> collection.Collected:
        return collection.collect(database, blobs, grace=GRACE, clock=lambda session: at(clock))

    assert collect() == (1, 0, 0)
    clock = 6000.0
    assert collect() == (0, 0, 1)
    assert list(blobs.scan()) == []


def test_bytes_published_too_long_ago_are_not_named_any_more(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspections, "UNNAMED_SECONDS", -1.0)
    with pytest.raises(Failure, match="send it again") as late:
        named(session, Blob("a" * 64, 1))
    assert late.value.code is Code.UNAVAILABLE


RACE_SECONDS = 4.5
RACE_GRACE = timedelta(seconds=0.8)
RACE_UNNAMED_SECONDS = 0.2


def test_collectors_that_race_writers_in_threads_delete_nothing_that_is_named(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspections, "UNNAMED_SECONDS", RACE_UNNAMED_SECONDS)
    blobs = FolderBlobs(tmp_path, keep_free_bytes=0)
    deadline = time.monotonic() + RACE_SECONDS
    lost: list[str] = []

    def write(seed: int) -> int:
        chance, rounds = random.Random(seed), 0
        while time.monotonic() < deadline:
            dies = chance.random() < 0.3
            with blobs.writer() as writer:
                writer.write(chance.choice([chance.randbytes(8), *CONTENTS] if dies else CONTENTS))
                blob = writer.publish()
            if dies:
                continue
            try:
                with database.transaction() as session:
                    row = named(session, blob)
            except Failure:  # the machine was too busy, and the product said so
                continue
            time.sleep(chance.choice([0.0, 0.1, 2.5 * RACE_GRACE.total_seconds()]))
            if not blobs.verify(blob.sha256):
                lost.append(row.id)
            with database.transaction() as session:
                session.delete(session.get_one(Network, row.id))
            rounds += 1
            time.sleep(chance.choice([0.0, 1.2 * RACE_GRACE.total_seconds()]))
        return rounds

    def collect() -> int:
        deleted = 0
        while time.monotonic() < deadline:
            with suppress(Failure):  # SQLite, when everybody writes at once
                deleted += collection.collect(database, blobs, grace=RACE_GRACE).deleted
            time.sleep(0.02)
        return deleted

    *rounds, first, second = together(*(partial(write, seed) for seed in range(4)), collect, collect)
    assert lost == []
    assert sum(rounds) > 0
    assert first + second > 0


def test_two_threads_that_publish_and_delete_one_version_never_lose_the_newer(tmp_path: Path) -> None:
    """The narrowest place: between the look at the version and the unlink."""
    blobs = FolderBlobs(tmp_path, keep_free_bytes=0)
    for _ in range(100):
        with blobs.writer() as writer:
            writer.write(b"content")
            blob = writer.publish()
        time.sleep(0.005)  # no clock tick has two versions
        old = blobs.stat(blob.sha256).version

        def publish() -> None:
            with blobs.writer() as writer:
                writer.write(b"content")
                writer.publish()

        together(publish, partial(blobs.delete, blob.sha256, version=old))
        assert blobs.verify(blob.sha256)
