"""What is deleted by itself, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models import attempts, audit, retention, transitions
from models.database import Database, now
from models.settings import Settings
from models.statuses import TERMINAL, JobStatus
from models.tables import Artifact, Audit, Checkpoint, Event, Idempotency, Job
from tests.models.rows import at, claim, job_in, submit


@pytest.mark.parametrize("status", JobStatus)
def test_only_ended_jobs_expire_and_with_all_they_gave(session: Session, status: JobStatus) -> None:
    job_id = job_in(session, status)
    assert retention.expire_jobs(session, at(0)) == 0
    ended = status in TERMINAL
    assert retention.expire_jobs(session, at(1000)) == int(ended)
    assert (session.get(Job, job_id) is None) is ended
    if ended:
        for table in (Event, Artifact):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_a_job_expires_as_long_after_its_end_as_is_set() -> None:
    assert retention.expiry_of(at(0), 2.0) == at(2 * 86400)
    assert retention.expiry_of(at(0), None) is None
    assert retention.expiry_of(None, 2.0) is None


def test_old_checkpoints_and_idempotency_keys_go_and_newer_ones_stay(session: Session) -> None:
    submit(session)
    job = claim(session)
    assert job is not None
    for seconds in (0, 100):
        key = f"{seconds:064}"
        attempts.add_checkpoint(session, job.id, 1, key=key, step_index=0, sha256=key, size_bytes=1, now=at(seconds))
        session.add(Idempotency(tenant="a", key=key, body_sha256=key, job_id=job.id, created_at=at(seconds)))
    session.flush()
    assert retention.expire_checkpoints(session, at(50)) == retention.expire_idempotency(session, at(50)) == 1
    assert session.scalars(select(Checkpoint.key)).all() == session.scalars(select(Idempotency.key)).all() == [key]


def test_everything_that_is_due_goes_in_one_round(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "AT_ONCE", 3)
    with database.transaction() as session:
        moment = now(session)
        job_ids = [submit(session) for _ in range(8)]
        for job_id in job_ids[1:]:
            transitions.cancel(session, "a", job_id, moment - timedelta(days=3))
        for number in range(7):
            row = Idempotency(tenant="a", key=str(number), body_sha256="", job_id="", created_at=at(-(10**9)))
            session.add(row)
    kept = Settings(keep_jobs_days=4.0)
    assert retention.expire(database, kept) == (0, 0, 7, 0, 0, 0)
    assert retention.expire(database, Settings()) == (0, 0, 0, 0, 0, 0)
    assert retention.expire(database, Settings(keep_jobs_days=2.0)) == (7, 0, 0, 0, 0, 0)
    with database.read() as session:
        assert session.scalars(select(Job.id)).all() == job_ids[:1]
        expired = session.scalars(select(Audit.object_id).where(Audit.action == "job.expired", Audit.tenant == "a"))
        assert set(expired) == set(job_ids[1:])


def test_the_audit_trail_goes_when_it_is_old(database: Database) -> None:
    with database.transaction() as session:
        for days in (0, 2, 4):
            then = now(session) - timedelta(days=days)
            audit.record(session, audit.Actor("a"), audit.Action.JOB_DELETED, f"job_{days}", then)
    assert retention.expire(database, Settings(keep_audit_days=None)).audit_rows == 0
    assert retention.expire(database, Settings(keep_audit_days=3.0)).audit_rows == 1
    with database.read() as session:
        assert set(session.scalars(select(Audit.object_id))) == {"job_0", "job_2"}
