"""Tenants take turns."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import transitions
from models.database import Database
from models.queue import queue_position, queued_count
from models.tables import Job, Tenant
from tests.models.rows import ERROR, at, claim, submit
from tests.models.test_transitions import together


def claimed_tenants(session: Session, count: int, *, finish: bool) -> list[str]:
    tenants = []
    for second in range(count):
        job = claim(session, seconds=100 + second)
        assert job is not None
        tenants.append(job.tenant)
        if finish:
            assert transitions.fail(session, job.id, job.attempt, ERROR, at(100 + second))
    return tenants


def test_a_tenant_who_floods_one_slot_delays_others_by_one_job(session: Session) -> None:
    for second in range(6):
        submit(session, "flood", seconds=second)
    submit(session, "b", seconds=10)
    submit(session, "c", seconds=11)
    submit(session, "b", seconds=12)
    assert claimed_tenants(session, 6, finish=True) == ["flood", "b", "c", "flood", "b", "flood"]


def test_a_tenant_who_holds_many_slots_waits_for_one_who_holds_none(session: Session) -> None:
    for second in range(4):
        submit(session, "flood", seconds=second)
    assert claimed_tenants(session, 2, finish=False) == ["flood", "flood"]
    submit(session, "b", seconds=10)
    submit(session, "b", seconds=11)
    assert claimed_tenants(session, 4, finish=False) == ["b", "b", "flood", "flood"]


def test_within_a_tenant_the_oldest_job_is_first_also_after_it_was_given_back(session: Session) -> None:
    oldest, second = (submit(session, seconds=seconds) for seconds in (1, 2))
    first = claim(session)
    assert first is not None
    assert first.id == oldest
    assert transitions.give_back(session, oldest, 1, at(9))
    again = claim(session)
    assert again is not None
    assert again.id == oldest
    last = claim(session)
    assert last is not None
    assert last.id == second


def test_positions_foresee_the_turns(session: Session) -> None:
    for tenant, seconds in (("flood", 0), ("flood", 1), ("flood", 2), ("b", 3), ("c", 4), ("b", 5)):
        submit(session, tenant, seconds=seconds)
    waiting = session.scalars(select(Job).order_by(Job.created_at)).all()
    positions = {(job.tenant, job.created_at): queue_position(session, job) for job in waiting}
    expected = [("flood", 0), ("b", 3), ("c", 4), ("flood", 1), ("b", 5), ("flood", 2)]
    assert sorted(positions, key=lambda key: positions[key] or 0) == [
        (tenant, at(second)) for tenant, second in expected
    ]
    assert sorted(position or 0 for position in positions.values()) == [1, 2, 3, 4, 5, 6]
    assert claimed_tenants(session, 6, finish=True) == [tenant for tenant, _ in expected]


def test_a_position_and_a_count_look_at_rivals_for_the_same_device_only(session: Session) -> None:
    for seconds, device in enumerate(("cuda", "cuda", "auto", "cpu")):
        submit(session, device, device=device, seconds=seconds)
    assert (queued_count(session, "cpu"), queued_count(session, "cuda")) == (2, 3)
    last = session.scalars(select(Job).where(Job.device == "cpu")).one()
    assert queue_position(session, last) == 2
    assert claim(session, device_class="cpu") is not None
    assert queue_position(session, last) == 1
    claimed = claim(session, device_class="cpu")
    assert claimed is not None
    assert queue_position(session, claimed) is None


def test_a_tenant_runs_as_many_as_it_may_and_leaves_the_turn_to_others(session: Session) -> None:
    session.add(Tenant(name="wide", running_jobs=3))
    for second in range(5):
        for tenant in ("a", "b", "wide"):
            submit(session, tenant, seconds=second)

    def tenants(count: int) -> list[str]:
        jobs = [claim(session, seconds=100 + turn, max_running=1) for turn in range(count)]
        return sorted(job.tenant for job in jobs if job is not None)

    assert tenants(8) == ["a", "b", "wide", "wide", "wide"]
    job = session.scalars(select(Job).where(Job.tenant == "a", Job.status == "running")).one()
    assert transitions.fail(session, job.id, job.attempt, ERROR, at(200))
    assert tenants(3) == ["a"]
    assert claim(session, seconds=300, max_running=0) is None
    assert claim(session, seconds=300) is not None


def test_workers_that_claim_at_once_hold_no_more_than_a_tenant_may_run(database: Database) -> None:
    with database.transaction() as session:
        for _ in range(8):
            submit(session, "a")
    held = []

    def work() -> None:
        with database.transaction() as session:
            job = claim(session, max_running=2)
            if job is not None:
                held.append(job.id)

    together(*[work] * 6)
    assert len(held) == len(set(held)) == 2


def test_tenants_that_are_full_are_passed_over_in_any_order_without_a_deadlock(postgres_url: str) -> None:
    """Workers of two device classes find them in different orders."""
    database = Database(postgres_url)
    with database.transaction() as session:
        for first, second, device in (("a", "b", "cpu"), ("b", "a", "cuda")):
            submit(session, first, seconds=1, device=device)
            submit(session, second, seconds=2, device=device)

    def work(device: str) -> None:
        for _ in range(30):
            with database.transaction() as session:
                assert claim(session, device_class=device, max_running=0) is None

    together(*[lambda device=device: work(device) for device in ("cpu", "cuda") * 2])
    database.close()
