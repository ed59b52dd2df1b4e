"""The audit trail: who did what to what, in rows that are added and never changed.

A row is written in the transaction of the change it speaks of, so that there is never one without the other; it names
no other row by a foreign key and outlives all of them. It holds ids alone: no names, no specs, no secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy.orm import Session

from models.ids import new_id
from models.tables import Audit


class Action(StrEnum):
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    TENANT_CHANGED = "tenant.changed"
    NETWORK_UPLOADED = "network.uploaded"
    NETWORK_DELETED = "network.deleted"
    DATASET_UPLOADED = "dataset.uploaded"
    DATASET_DELETED = "dataset.deleted"
    UPLOAD_CREATED = "upload.created"
    UPLOAD_DELETED = "upload.deleted"
    JOB_SUBMITTED = "job.submitted"
    JOB_CLONED = "job.cloned"
    JOB_CANCELLED = "job.cancelled"
    JOB_DELETED = "job.deleted"
    JOB_EXPIRED = "job.expired"
    WEBHOOK_REDELIVERED = "webhook.redelivered"
    WEBHOOK_SECRET_ROTATED = "webhook.secret_rotated"  # noqa: S105
    ARTIFACT_DOWNLOADED = "artifact.downloaded"
    BUNDLE_DOWNLOADED = "bundle.downloaded"


class Outcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"
    """The key lacks the scope for it."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts. Without a key: open access where there is a request, else somebody on the server's machine."""

    tenant: str
    key_id: str | None = None
    request_id: str | None = None


def record(
    session: Session,
    actor: Actor,
    action: Action,
    object_id: str | None,
    now: datetime,
    outcome: Outcome = Outcome.DONE,
) -> None:
    """Add a row, which is there once the caller's transaction is committed."""
    session.add(
        Audit(
            id=new_id("aud"),
            at=now,
            tenant=actor.tenant,
            key_id=actor.key_id,
            request_id=actor.request_id,
            action=action.value,
            object_id=object_id,
            outcome=outcome.value,
        )
    )
    session.flush()
