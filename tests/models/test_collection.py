"""Collection against everybody who names bytes: any order of events, real threads, and a process killed half-way."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import true
from sqlalchemy.orm import Session

from models import collection, inspections
from models.blobs import Blob, FolderBlobs
from models.database import Database
from models.errors import Code, Failure
from models.tables import Base, Dataset, Network
from tests.models.collecting import CONTENTS, GRACE, QUICK, CollectionMachine, Place, machine_on
from tests.models.rows import at
from tests.models.test_transitions import together


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
