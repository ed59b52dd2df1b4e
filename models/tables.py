"""The database: one truth for every process. Times are UTC; ids are `models.ids`; JSON columns hold pydantic dumps."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


def dump(value: BaseModel, *, as_given: bool = False) -> dict[str, Any]:
    """What a JSON column holds of `value`; a number that is not finite becomes null, as JSON has none.

    `as_given` leaves out the fields that were not given, though they have defaults."""
    plain: dict[str, Any] = json.loads(value.model_dump_json(exclude_unset=as_given))
    return plain


class UtcDateTime(TypeDecorator[datetime]):
    """A time that is UTC going in and coming out, also on SQLite, which forgets zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    type_annotation_map = {datetime: UtcDateTime, dict[str, Any]: JSON(none_as_null=True), str: String(255)}  # noqa: RUF012


class Key(Base):
    """An API key, kept only as the SHA-256 of its secret. `scopes` as `models.scopes` stores them."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    secret_sha256: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    scopes: Mapped[str]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None] = mapped_column(doc="Behind by a minute or two")
    revoked_at: Mapped[datetime | None]
    successor_id: Mapped[str | None]


class Tenant(Base):
    """A tenant with limits of its own; a null is what the settings say. The others have no row."""

    __tablename__ = "tenants"

    name: Mapped[str] = mapped_column(primary_key=True)
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    open_uploads: Mapped[int | None] = mapped_column(Integer)
    queued_jobs: Mapped[int | None] = mapped_column(Integer)
    running_jobs: Mapped[int | None] = mapped_column(Integer)
    requests_per_second: Mapped[float | None] = mapped_column(Float)
    request_burst: Mapped[int | None] = mapped_column(Integer)


class Audit(Base):
    """One line of the audit trail (`models.audit`). A trigger of the database refuses to change one."""

    __tablename__ = "audit"
    __table_args__ = (
        Index("audit_by_tenant", "tenant", "id"),
        Index("audit_by_object", "object_id"),
        Index("audit_by_time", "at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    tenant: Mapped[str]
    key_id: Mapped[str | None]
    request_id: Mapped[str | None]
    action: Mapped[str] = mapped_column(String(32))
    object_id: Mapped[str | None]
    outcome: Mapped[str] = mapped_column(String(16))


class _Upload:
    """What a network and a dataset share: bytes accepted, inspected once in a sandboxed child under a lease."""

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    inspection: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    strikes: Mapped[int] = mapped_column(Integer, default=0)
    lease_expires_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Network(_Upload, Base):
    __tablename__ = "networks"
    __table_args__ = (
        Index("networks_by_tenant", "tenant", "id"),
        Index("networks_by_status", "status"),
        Index("networks_by_sha256", "sha256"),
    )

    read_options: Mapped[dict[str, Any] | None]


class Dataset(_Upload, Base):
    __tablename__ = "datasets"
    __table_args__ = (
        Index("datasets_by_tenant", "tenant", "id"),
        Index("datasets_by_status", "status"),
        Index("datasets_by_sha256", "sha256"),
    )


class ResumableUpload(Base):
    """Bytes on their way in. How many have arrived is not here but in the length of the file (`models.incoming`).

    `verifying_from`: bytes from here on belong to a part whose checksum is still to be seen; they do not count yet.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        Index("uploads_by_tenant", "tenant", "status", "expires_at"),
        Index("uploads_by_expiry", "expires_at"),
        Index("uploads_by_sha256", "sha256"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str]
    upload_metadata: Mapped[str | None] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    expected_sha256: Mapped[str | None] = mapped_column(String(64))
    sha256: Mapped[str | None] = mapped_column(String(64))
    verifying_from: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16))
    network_id: Mapped[str | None]
    dataset_id: Mapped[str | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]


class Job(Base):
    """`attempt` is the fencing token: it grows with every claim, and every write of a worker carries it.

    `strikes` counts the attempts that ended badly; a job given back by a stopping worker keeps its strikes.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("jobs_by_tenant", "tenant", "id"),
        Index("jobs_to_claim", "status", "device", "tenant", "created_at", "id"),  # all that a claim reads
        Index("jobs_by_lease", "status", "lease_expires_at"),
        Index("jobs_by_start", "tenant", "started_at"),
        Index("jobs_by_finish", "finished_at"),
        Index("jobs_by_network", "network_id"),
        Index("jobs_by_dataset", "dataset_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    name: Mapped[str | None]
    network_id: Mapped[str] = mapped_column(ForeignKey("networks.id"))
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    spec: Mapped[dict[str, Any]]
    resolved_spec: Mapped[dict[str, Any]]
    device: Mapped[str] = mapped_column(String(8), doc="auto, cpu or cuda: which workers may claim it")
    status: Mapped[str] = mapped_column(String(16))
    phase: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[dict[str, Any]]
    error: Mapped[dict[str, Any] | None]
    report: Mapped[dict[str, Any] | None]
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    strikes: Mapped[int] = mapped_column(Integer, default=0)
    worker_id: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]
    event_count: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    changed_at: Mapped[datetime]


class JobTeacher(Base):
    """A network other than its own that a job learns from."""

    __tablename__ = "job_teachers"
    __table_args__ = (Index("job_teachers_by_network", "network_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    network_id: Mapped[str] = mapped_column(ForeignKey("networks.id"), primary_key=True)


class Event(Base):
    """One thing that happened in a job; `id` counts from 1 within the job."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(Integer)
    data: Mapped[dict[str, Any]]


class Artifact(Base):
    __tablename__ = "artifacts"
    __table_args__ = (Index("artifacts_by_sha256", "sha256"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    content_type: Mapped[str]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    partial: Mapped[bool] = mapped_column(default=False)


class Checkpoint(Base):
    """The state after a step, shared by every job of the tenant whose key is the same."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("checkpoints_by_sha256", "sha256"), Index("checkpoints_by_time", "created_at"))

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    step_index: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime]


class Log(Base):
    """The engine's log of a job, in pieces, in order."""

    __tablename__ = "logs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)


class Idempotency(Base):
    """A job made under an Idempotency-Key; the same key and body give the same job for a day."""

    __tablename__ = "idempotency"
    __table_args__ = (Index("idempotency_by_time", "created_at"),)

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str] = mapped_column(String(64))
    job_id: Mapped[str]
    created_at: Mapped[datetime]


class WebhookMessage(Base):
    """What is to be told to a job's webhook about its end, written with that end. Its id is the `webhook-id`.

    `body`: what is signed and sent, to the byte. `endpoint`: the SHA-256 of tenant and URL. `token` grows with every
    claim. `failures` counts since the schedule began, `attempts` has the last ones. A message with `disabled_at` is why
    nothing more is sent to its endpoint.
    """

    __tablename__ = "webhook_messages"
    __table_args__ = (
        Index("webhook_messages_by_tenant", "tenant", "id"),
        Index("webhook_messages_to_claim", "status", "next_attempt_at"),
        Index("webhook_messages_by_lease", "tenant", "lease_expires_at"),
        Index("webhook_messages_by_endpoint", "endpoint", "status"),
        Index("webhook_messages_by_end", "ended_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), unique=True)
    tenant: Mapped[str]
    url: Mapped[str] = mapped_column(Text)
    endpoint: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    failures: Mapped[int] = mapped_column(Integer, default=0)
    token: Mapped[int] = mapped_column(Integer, default=0)
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    created_at: Mapped[datetime]
    next_attempt_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]


class WebhookEndpoint(Base):
    """Where messages were delivered, known longer than they are: a deleted job takes its message along."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("webhook_endpoints_by_delivery", "delivered_at"),)

    endpoint: Mapped[str] = mapped_column(String(64), primary_key=True)
    delivered_at: Mapped[datetime]


class WebhookSecret(Base):
    """The salt of a secret that signs a tenant's webhooks; see `models.webhook_secrets`."""

    __tablename__ = "webhook_secrets"
    __table_args__ = (Index("webhook_secrets_by_tenant", "tenant"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    salt: Mapped[bytes] = mapped_column(LargeBinary(16))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class CondemnedBlob(Base):
    """Stored bytes that no row named when they were looked at; see `models.collection`."""

    __tablename__ = "condemned_blobs"
    __table_args__ = (Index("condemned_blobs_by_time", "condemned_at"),)

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[str]
    condemned_at: Mapped[datetime]


class Worker(Base):
    """A worker process that is, or was, alive."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str]
    device_class: Mapped[str | None] = mapped_column(String(8))
    device_set: Mapped[str | None]
    slots: Mapped[int] = mapped_column(Integer)
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    versions: Mapped[dict[str, Any]]
    sandbox: Mapped[str]
    started_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime]
