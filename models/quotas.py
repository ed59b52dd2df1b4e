"""What one tenant may keep here. Only the tenant's own rows count, so that nobody learns what others store."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select, text, union
from sqlalchemy.orm import Session

from models.errors import Code, Failure
from models.statuses import TransferStatus
from models.tables import Artifact, Dataset, Job, Network, ResumableUpload


def lock_tenant(session: Session, tenant: str) -> None:
    """Until the transaction ends, no other one that asks for the same lock counts what this tenant has."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"quota {tenant}"})


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


def refuse_one_more_upload(session: Session, tenant: str, limit: int, now: datetime) -> None:
    """Raises `Failure` with `too_many_uploads` when the tenant has `limit` open uploads."""
    open_ones = select(func.count()).where(
        ResumableUpload.tenant == tenant,
        ResumableUpload.status == TransferStatus.OPEN,
        ResumableUpload.expires_at > now,
    )
    if (session.scalar(open_ones) or 0) >= limit:
        raise Failure(Code.TOO_MANY_UPLOADS, f"{limit} uploads are open already, as many as are allowed.")
