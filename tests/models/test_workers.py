"""What can run here is what workers say."""

from __future__ import annotations

from typing import Any

from models import workers
from models.database import Database
from models.tables import Worker
from tests.models.rows import at, claim, submit


def worker(worker_id: str, **changes: Any) -> Worker:
    fields = {
        "id": worker_id,
        "queue": "device.cpu",
        "device_class": "cpu",
        "device_set": None,
        "slots": 2,
        "memory_bytes": 1 << 33,
        "versions": {"torch": "2.13.0"},
        "sandbox": "rlimits",
        "started_at": at(0),
        "heartbeat_at": at(0),
    }
    return Worker(**fields | changes)


def test_a_worker_is_live_while_it_beats(database: Database) -> None:
    with database.transaction() as session:
        for worker_id in ("w1", "w2", "w2"):
            workers.register(session, worker(worker_id))
        assert workers.beat(session, "w1", at(50))
        assert not workers.beat(session, "unknown", at(50))
        assert [row.id for row in workers.live(session, heard_since=at(0))] == ["w1", "w2"]
        assert [row.id for row in workers.live(session, heard_since=at(30))] == ["w1"]
        assert workers.forget(session, silent_since=at(30)) == 1
        workers.leave(session, "w1")
        assert workers.live(session, heard_since=at(0)) == []


def test_free_slots_are_those_of_live_workers_less_the_jobs_they_hold(database: Database) -> None:
    with database.transaction() as session:
        workers.register(session, worker("w1", slots=3))
        workers.register(session, worker("w2", slots=1))
        workers.register(session, worker("gpu", device_class="cuda", device_set="0,1", slots=1))
        workers.register(session, worker("control", device_class=None, queue="control"))
        workers.register(session, worker("dead", slots=9, heartbeat_at=at(-99)))
        for name in ("w1", "w2", "w2"):
            submit(session)
            assert claim(session, worker=name) is not None
        assert workers.free_slots(session, heard_since=at(-30)) == {"cpu": 2, "cuda": 1}
