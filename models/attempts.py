"""What a worker writes while it holds a job, none of it a change of status.

`attempt` is the fencing token: a write of an attempt that does not hold the job changes nothing and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.orm import Session

from models.database import upsert
from models.events import EngineEvent, PhaseEvent, ProgressEvent, StatusEvent
from models.statuses import JobStatus
from models.tables import Artifact, Checkpoint, Event, Job, Log, dump

HELD = (JobStatus.RUNNING, JobStatus.CANCELLING)
"""The statuses in which a worker holds a job."""


@dataclass(frozen=True, slots=True)
class PublishedArtifact:
    """A file given back, whose bytes are already in the blob store."""

    name: str
    kind: str
    content_type: str
    size_bytes: int
    sha256: str
    partial: bool = False


def beat(session: Session, job_id: str, attempt: int, lease_until: datetime, now: datetime) -> JobStatus | None:
    """Renew the lease and learn the status in one statement; `None`: this attempt holds the job no more.

    `running`, or `cancelling` when somebody asked for the end. A lease that ran out but was not yet swept is renewed.
    """
    status = session.scalar(
        update(Job).where(_held(job_id, attempt)).values(lease_expires_at=lease_until).returning(Job.status)
    )
    return None if status is None else JobStatus(status)


def record(
    session: Session, job_id: str, attempt: int, events: Sequence[EngineEvent | StatusEvent], now: datetime
) -> bool:
    """Append events and let the job's phase and progress follow them."""
    job = _lock(session, job_id, attempt)
    if job is None:
        return False
    phase, progress = job.phase, dict(job.progress)
    for number, event in enumerate(events, start=job.event_count + 1):
        session.add(Event(job_id=job_id, id=number, at=now, attempt=attempt, data=dump(event)))
        if isinstance(event, PhaseEvent):
            phase = event.phase.value
            progress |= {"step_index": event.step_index, "step_count": event.step_count, "epoch": None, "epochs": None}
        elif isinstance(event, ProgressEvent):
            progress |= event.model_dump(exclude={"type"})
    session.flush()
    session.execute(
        update(Job)
        .where(_held(job_id, attempt))
        .values(event_count=Job.event_count + len(events), phase=phase, progress=progress, changed_at=now)
        .execution_options(synchronize_session=False)
    )
    return True


def append_log(session: Session, job_id: str, attempt: int, text: str) -> bool:
    """Append a piece of the engine's log. PostgreSQL cannot store NUL, so it becomes U+FFFD."""
    if _lock(session, job_id, attempt) is None:
        return False
    last = session.scalar(select(func.max(Log.id)).where(Log.job_id == job_id)) or 0
    session.add(Log(job_id=job_id, id=last + 1, attempt=attempt, text=text.replace("\0", "\ufffd")))
    session.flush()
    return True


def add_artifact(session: Session, job_id: str, attempt: int, artifact: PublishedArtifact) -> bool:
    """Name a file of a job that still runs; a later attempt overwrites it."""
    if _lock(session, job_id, attempt) is None:
        return False
    upsert(session, artifact_row(job_id, artifact))
    return True


def add_checkpoint(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    key: str,
    step_index: int,
    sha256: str,
    size_bytes: int,
    now: datetime,
    supersedes: str | None = None,
) -> bool:
    """Name a state for another attempt, and for every job of the tenant with the same key. It takes the place of an
    older one with its key, and of the one with the key `supersedes`."""
    job = _lock(session, job_id, attempt)
    if job is None:
        return False
    checkpoint = Checkpoint(
        tenant=job.tenant, key=key, step_index=step_index, sha256=sha256, size_bytes=size_bytes, created_at=now
    )
    upsert(session, checkpoint)
    if supersedes is not None:
        session.execute(delete(Checkpoint).where(Checkpoint.tenant == job.tenant, Checkpoint.key == supersedes))
    return True


def checkpoints(session: Session, tenant: str, keys: Sequence[str]) -> list[Checkpoint]:
    """Those of the tenant's checkpoints that have one of `keys`, in the order of steps."""
    return list(
        session.scalars(
            select(Checkpoint)
            .where(Checkpoint.tenant == tenant, Checkpoint.key.in_(keys))
            .order_by(Checkpoint.step_index)
        )
    )


def artifact_row(job_id: str, artifact: PublishedArtifact) -> Artifact:
    return Artifact(job_id=job_id, **asdict(artifact))


def _held(job_id: str, attempt: int) -> ColumnElement[bool]:
    return and_(Job.id == job_id, Job.attempt == attempt, Job.status.in_(HELD))


def _lock(session: Session, job_id: str, attempt: int) -> Job | None:
    """The job, kept from changing until the transaction ends; `None`: this attempt holds it no more."""
    return session.scalars(
        select(Job).where(_held(job_id, attempt)).with_for_update().execution_options(populate_existing=True)
    ).one_or_none()
