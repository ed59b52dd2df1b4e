"""Every change of a job's status, each one guarded statement. `statuses.TRANSITIONS` is the map; these are the roads.

A change names the statuses it starts from and, when a worker makes it, the attempt that worker holds. No row back means
that somebody else won (it was cancelled, finished, or given to another worker): a normal answer, `None` or `False`.
Each change also appends its `status` event and moves `changed_at`, in the caller's transaction; so does each end write
the message to the job's webhook, which is then sent for an end that was committed, and for no other.
What a worker writes without a change of status is in `attempts.py`; who claims next is decided in `queue.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, literal, null, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import coalesce

from models import webhooks
from models.attempts import HELD, PublishedArtifact, artifact_row
from models.errors import Code, Failure, JobError
from models.events import StatusEvent
from models.ids import new_id
from models.queue import oldest_job, turns
from models.quotas import lock_tenant, running_jobs
from models.report import Report
from models.spec import Spec
from models.spec_train import teacher_ids
from models.statuses import TERMINAL, JobStatus
from models.tables import Artifact, Event, Job, JobTeacher, UtcDateTime, dump

_LEFT: dict[str, None] = {"worker_id": None, "lease_expires_at": None, "phase": None}
_ENDED: dict[str, None] = {"lease_expires_at": None, "phase": None}


def submit(
    session: Session,
    *,
    tenant: str,
    name: str | None,
    network_id: str,
    dataset_id: str | None,
    spec: Spec,
    resolved_spec: Spec,
    device: str,
    now: datetime,
) -> Job:
    """Insert a queued job. Raises `Failure` with `not_found` when a network or data set of it was deleted meanwhile."""
    job = Job(
        id=new_id("job"),
        tenant=tenant,
        name=name,
        network_id=network_id,
        dataset_id=dataset_id,
        spec=dump(spec, as_given=True),
        resolved_spec=dump(resolved_spec),
        device=device,
        status=JobStatus.QUEUED.value,
        progress={
            "percent": 0.0,
            "step_index": None,
            "step_count": len(resolved_spec.steps or ()),
            "epoch": None,
            "epochs": None,
            "eta_seconds": None,
        },
        attempt=0,
        strikes=0,
        event_count=1,
        created_at=now,
        changed_at=now,
    )
    session.add(job)
    try:
        session.flush()
        session.add_all(JobTeacher(job_id=job.id, network_id=each) for each in teacher_ids(resolved_spec.steps or ()))
        session.flush()
    except IntegrityError as error:
        raise Failure(Code.NOT_FOUND, "A network or the data set of this job was deleted meanwhile.") from error
    _append_status(session, job, None)
    return job


def claim(
    session: Session,
    *,
    device_class: str,
    worker_id: str,
    lease_until: datetime,
    now: datetime,
    max_running: int | None = None,
) -> Job | None:
    """queued -> running: take the job whose turn it is on this device class, with a new attempt; `None`: none waits, or
    only those of tenants that run as many as they may (`max_running`, where a tenant has no limit of its own).

    Two workers never get the same row, and neither waits for the other, but for the jobs of a tenant with a limit."""
    for tenant, limit in turns(session, device_class, max_running):
        if limit is not None and not _may_run_one_more(session, tenant, limit):
            continue
        job = _change(
            session,
            and_(Job.id == oldest_job(tenant, device_class), Job.status == JobStatus.QUEUED),
            now,
            status=JobStatus.RUNNING,
            attempt=Job.attempt + 1,
            worker_id=worker_id,
            lease_expires_at=lease_until,
            started_at=coalesce(Job.started_at, _moment(now)),
        )
        if job is not None:
            return job
    return None


def _may_run_one_more(session: Session, tenant: str, limit: int) -> bool:
    """If so, nobody else counts this tenant's jobs until the transaction ends. If not, the lock goes with the
    savepoint: two who held several, in different orders, could wait for each other."""
    savepoint = session.begin_nested()
    lock_tenant(session, tenant)
    if running_jobs(session, tenant) < limit:
        savepoint.commit()
        return True
    savepoint.rollback()
    return False


def succeed(
    session: Session, job_id: str, attempt: int, report: Report, artifacts: Sequence[PublishedArtifact], now: datetime
) -> bool:
    """running -> succeeded: status, artifacts, report and the terminal event, or nothing."""
    guard = _running(job_id, attempt)
    job = _change(session, guard, now, status=JobStatus.SUCCEEDED, report=dump(report), finished_at=now, **_ENDED)
    if job is None:
        return False
    session.execute(delete(Artifact).where(Artifact.job_id == job_id))
    session.add_all(artifact_row(job_id, artifact) for artifact in artifacts)
    session.flush()
    return True


def fail(session: Session, job_id: str, attempt: int, error: JobError, now: datetime) -> bool:
    """running -> failed: for a reason that another attempt would meet again."""
    guard = _running(job_id, attempt)
    values = {"status": JobStatus.FAILED, "error": dump(error), "finished_at": now, **_ENDED}
    return _change(session, guard, now, error.message, **values) is not None


def give_back(session: Session, job_id: str, attempt: int, now: datetime) -> bool:
    """running -> queued: the worker stops, the job did nothing wrong, its strikes stay."""
    return _change(session, _running(job_id, attempt), now, status=JobStatus.QUEUED, **_LEFT) is not None


def cancel(session: Session, tenant: str, job_id: str, now: datetime) -> JobStatus | None:
    """queued -> cancelled at once, or running -> cancelling.

    Returns the status it has now, also when it had ended or was being cancelled; `None`: the tenant has no such job."""
    mine = and_(Job.id == job_id, Job.tenant == tenant)
    was_queued = Job.status == JobStatus.QUEUED
    job = _change(
        session,
        and_(mine, Job.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))),
        now,
        status=case((was_queued, JobStatus.CANCELLED), else_=JobStatus.CANCELLING),
        finished_at=case((was_queued, _moment(now)), else_=null()),
    )
    status = session.scalar(select(Job.status).where(mine)) if job is None else job.status
    return None if status is None else JobStatus(status)


def mark_cancelled(session: Session, job_id: str, attempt: int, now: datetime) -> bool:
    """cancelling -> cancelled: the process group is gone."""
    guard = and_(Job.id == job_id, Job.attempt == attempt, Job.status == JobStatus.CANCELLING)
    return _change(session, guard, now, status=JobStatus.CANCELLED, finished_at=now, **_ENDED) is not None


def strike(
    session: Session, job_id: str, attempt: int, error: JobError, max_strikes: int, now: datetime
) -> JobStatus | None:
    """The attempt ended badly, and another may do better: running -> queued with one strike more, running -> failed
    with `error` when that was the last one allowed, cancelling -> cancelled. Returns the status it has now."""
    guard = and_(Job.id == job_id, Job.attempt == attempt, Job.status.in_(HELD))
    job = _end_attempt(session, guard, error, max_strikes, now)
    return None if job is None else JobStatus(job.status)


def sweep(session: Session, *, max_strikes: int, now: datetime) -> list[tuple[str, JobStatus]]:
    """End, as `strike` does, every attempt whose lease ran out. Returns the jobs changed and their new statuses.

    Safe to run twice, and beside itself. A row that another transaction holds is left for the next sweep."""
    lapsed = and_(Job.status.in_(HELD), Job.lease_expires_at < now)
    rows = session.execute(
        select(Job.id, Job.worker_id).where(lapsed).order_by(Job.id).with_for_update(skip_locked=True)
    ).all()
    changed: list[tuple[str, JobStatus]] = []
    for job_id, worker_id in rows:  # locked, so they stay lapsed
        error = Failure(Code.WORKER_LOST, f"Worker {worker_id} stopped answering while it ran this job.").as_error()
        job = _end_attempt(session, Job.id == job_id, error, max_strikes, now)
        if job is not None:
            changed.append((job_id, JobStatus(job.status)))
    return changed


def delete_job(session: Session, tenant: str, job_id: str) -> bool:
    """Delete an ended job with its events, log and artifacts; `False`: the tenant has no such job.

    Raises `Failure` with `in_use` while it has not ended."""
    mine = and_(Job.id == job_id, Job.tenant == tenant)
    if session.scalar(delete(Job).where(mine, Job.status.in_(TERMINAL)).returning(Job.id)) is not None:
        return True
    status = session.scalar(select(Job.status).where(mine))
    if status is None:
        return False
    raise Failure(
        Code.IN_USE, f"The job is {status}. Cancel it, or wait for its end, before deleting it.", where=job_id
    )


def _running(job_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(Job.id == job_id, Job.attempt == attempt, Job.status == JobStatus.RUNNING)


def _moment(now: datetime) -> ColumnElement[datetime]:
    return literal(now, UtcDateTime())


def _end_attempt(
    session: Session, guard: ColumnElement[bool], error: JobError, max_strikes: int, now: datetime
) -> Job | None:
    was_cancelling = Job.status == JobStatus.CANCELLING
    retried = Job.strikes + 1 < max_strikes
    return _change(
        session,
        guard,
        now,
        error.message,
        status=case((was_cancelling, JobStatus.CANCELLED), (retried, JobStatus.QUEUED), else_=JobStatus.FAILED),
        strikes=case((was_cancelling, Job.strikes), else_=Job.strikes + 1),
        error=case((was_cancelling, null()), (retried, null()), else_=literal(dump(error), Job.error.type)),
        finished_at=case((was_cancelling, _moment(now)), (retried, null()), else_=_moment(now)),
        **_LEFT,
    )


def _change(
    session: Session, guard: ColumnElement[bool], now: datetime, message: str | None = None, /, **values: Any
) -> Job | None:
    """The one place where a job's status is written."""
    statement = (
        update(Job)
        .where(guard)
        .values(**values, changed_at=now, event_count=Job.event_count + 1)
        .returning(Job)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    job = session.scalars(statement).one_or_none()
    if job is not None:
        _append_status(session, job, message)
        if JobStatus(job.status).is_terminal:
            webhooks.announce(session, job)
    return job


def _append_status(session: Session, job: Job, message: str | None) -> None:
    event = StatusEvent(status=JobStatus(job.status), attempt=job.attempt, message=message)
    row = Event(job_id=job.id, id=job.event_count, at=job.changed_at, attempt=job.attempt, data=dump(event))
    session.add(row)
    session.flush()
