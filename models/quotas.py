"""What one tenant may keep here. Only the tenant's own rows count, so that nobody learns what others store."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, union
from sqlalchemy.orm import Session

from models.attempts import HELD
from models.database import lock
from models.errors import Code, Failure
from models.settings import Settings
from models.statuses import JobStatus, TransferStatus
from models.tables import Artifact, Dataset, Job, Network, ResumableUpload, Tenant


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tenant may keep, queue and send here. `None`: no limit."""

    stored_bytes: int
    open_uploads: int
    queued_jobs: int
    running_jobs: int | None
    requests_per_second: float | None
    request_burst: int


LIMITS = tuple(field.name for field in fields(Limits))
"""Each is a setting, `max_…`, and a column of `Tenant`."""


def limits_of(settings: Settings, own: Tenant | None) -> Limits:
    """What the settings say, but for what the tenant's row says, where there is one."""
    chosen: dict[str, Any] = {name: getattr(settings, f"max_{name}") for name in LIMITS}
    if own is not None:
        chosen |= {name: value for name in LIMITS if (value := getattr(own, name)) is not None}
    return Limits(**chosen)


def lock_tenant(session: Session, tenant: str) -> None:
    """Until the transaction ends, no other one that asks for the same lock counts what this tenant has."""
    lock(session, f"quota {tenant}")


def stored_bytes(session: Session, tenant: str, now: datetime) -> int:
    """What the tenant's networks, data sets, artifacts and uploads take; the same bytes count once.

    An upload counts with its whole length from the moment it is created: that is its reservation."""
    known = func.coalesce(ResumableUpload.sha256, ResumableUpload.id)
    alive = ResumableUpload.status.in_((TransferStatus.OPEN, TransferStatus.COMPLETE))
    contents = union(
        select(Network.sha256, Network.size_bytes).where(Network.tenant == tenant),
        select(Dataset.sha256, Dataset.size_bytes).where(Dataset.tenant == tenant),
        select(Artifact.sha256, Artifact.size_bytes).join(Job, Job.id == Artifact.job_id).where(Job.tenant == tenant),
        select(known, ResumableUpload.size_bytes).where(
            ResumableUpload.tenant == tenant, alive, ResumableUpload.expires_at > now
        ),
    ).subquery("contents")
    return int(session.scalar(select(func.coalesce(func.sum(contents.c.size_bytes), 0))) or 0)


def refuse_over(session: Session, tenant: str, limit_bytes: int, now: datetime, *, more_bytes: int = 0) -> int:
    """How many bytes are left beside `more_bytes`. Raises `Failure` with `quota_exceeded` when there are none."""
    left = limit_bytes - stored_bytes(session, tenant, now) - more_bytes
    if left < 0:
        raise over_quota(limit_bytes)
    return left


def over_quota(limit_bytes: int) -> Failure:
    return Failure(Code.QUOTA_EXCEEDED, f"What you store here would be more than the {limit_bytes} bytes allowed.")


def open_uploads(session: Session, tenant: str, now: datetime) -> int:
    open_ones = select(func.count()).where(
        ResumableUpload.tenant == tenant,
        ResumableUpload.status == TransferStatus.OPEN,
        ResumableUpload.expires_at > now,
    )
    return session.scalar(open_ones) or 0


def queued_jobs(session: Session, tenant: str) -> int:
    return session.scalar(select(func.count()).where(Job.status == JobStatus.QUEUED, Job.tenant == tenant)) or 0


def running_jobs(session: Session, tenant: str) -> int:
    """Those that workers hold, also while they cancel them."""
    return session.scalar(select(func.count()).where(Job.status.in_(HELD), Job.tenant == tenant)) or 0


def used(session: Session, tenant: str, now: datetime) -> dict[str, int]:
    """What counts towards each limit on what is kept."""
    return {
        "stored_bytes": stored_bytes(session, tenant, now),
        "open_uploads": open_uploads(session, tenant, now),
        "queued_jobs": queued_jobs(session, tenant),
        "running_jobs": running_jobs(session, tenant),
    }


def refuse_one_more_job(session: Session, tenant: str, limit: int) -> None:
    """Raises `Failure` with `too_many_jobs` when `limit` jobs of the tenant wait."""
    if queued_jobs(session, tenant) >= limit:
        raise Failure(Code.TOO_MANY_JOBS, f"{limit} jobs wait already, as many as are allowed.")


def refuse_one_more_upload(session: Session, tenant: str, limit: int, now: datetime) -> None:
    """Raises `Failure` with `too_many_uploads` when the tenant has `limit` open uploads."""
    if open_uploads(session, tenant, now) >= limit:
        raise Failure(Code.TOO_MANY_UPLOADS, f"{limit} uploads are open already, as many as are allowed.")
