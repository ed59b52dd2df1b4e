"""How long rows are kept that nobody deletes. The bytes they named are for `models/collection.py`.

Safe to run twice, and beside itself: each statement takes only rows that nothing will change any more.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import delete, exists, select, tuple_
from sqlalchemy.orm import Session

from models import audit
from models.audit import Action, Actor
from models.database import Database, now
from models.settings import Settings
from models.statuses import TERMINAL
from models.tables import Audit, Checkpoint, Idempotency, Job, WebhookEndpoint, WebhookMessage
from models.webhooks import is_undelivered

IDEMPOTENCY_LIFETIME = timedelta(hours=24)
"""How long the same Idempotency-Key gives the same job; its row goes afterwards."""
AT_ONCE = 100
_Expire = Callable[[Session, datetime], int]


class Expired(NamedTuple):
    jobs: int
    checkpoints: int
    idempotency_keys: int
    audit_rows: int
    webhook_messages: int
    webhook_endpoints: int


def expiry_of(finished_at: datetime | None, keep_days: float | None) -> datetime | None:
    """When an ended job will be deleted; `None`: it has not ended, or is kept until somebody deletes it."""
    return None if finished_at is None or keep_days is None else finished_at + timedelta(days=keep_days)


def expire(database: Database, settings: Settings) -> Expired:
    """Delete what is older than the settings keep, a hundred rows at a time so that nobody waits long."""
    with database.read() as session:
        moment = now(session)
    jobs = checkpoints = audit_rows = 0
    if settings.keep_jobs_days is not None:
        jobs = _until_none(database, expire_jobs, moment - timedelta(days=settings.keep_jobs_days))
    if settings.keep_checkpoints_days is not None:
        before = moment - timedelta(days=settings.keep_checkpoints_days)
        checkpoints = _until_none(database, expire_checkpoints, before)
    if settings.keep_audit_days is not None:
        audit_rows = _until_none(database, expire_audit, moment - timedelta(days=settings.keep_audit_days))
    idempotency_keys = _until_none(database, expire_idempotency, moment - IDEMPOTENCY_LIFETIME)
    before = moment - timedelta(days=settings.keep_webhooks_days)
    messages, endpoints = (_until_none(database, some, before) for some in (expire_webhooks, expire_endpoints))
    return Expired(jobs, checkpoints, idempotency_keys, audit_rows, messages, endpoints)


def expire_jobs(session: Session, before: datetime) -> int:
    """Delete jobs that ended before then, with their events, logs and artifacts, but for those whose webhook is still
    to be told; the audit trail says so."""
    ended = select(Job.id).where(Job.status.in_(TERMINAL), Job.finished_at < before, ~is_undelivered(Job))
    ended = ended.order_by(Job.finished_at)
    gone = delete(Job).where(Job.id.in_(ended.limit(AT_ONCE).with_for_update(skip_locked=True).scalar_subquery()))
    expired = session.execute(gone.returning(Job.tenant, Job.id)).tuples().all()
    for tenant, job_id in expired:
        audit.record(session, Actor(tenant), Action.JOB_EXPIRED, job_id, now(session))
    return len(expired)


def expire_checkpoints(session: Session, before: datetime) -> int:
    """Delete checkpoints older than that. A job that would have used one runs its steps itself."""
    key = tuple_(Checkpoint.tenant, Checkpoint.key)
    old = select(Checkpoint.tenant, Checkpoint.key).where(Checkpoint.created_at < before).limit(AT_ONCE)
    gone = delete(Checkpoint).where(key.in_(old), Checkpoint.created_at < before)
    return len(session.scalars(gone.returning(Checkpoint.key)).all())


def expire_idempotency(session: Session, before: datetime) -> int:
    key = tuple_(Idempotency.tenant, Idempotency.key)
    old = select(Idempotency.tenant, Idempotency.key).where(Idempotency.created_at < before).limit(AT_ONCE)
    gone = delete(Idempotency).where(key.in_(old), Idempotency.created_at < before)
    return len(session.scalars(gone.returning(Idempotency.key)).all())


def expire_audit(session: Session, before: datetime) -> int:
    old = select(Audit.id).where(Audit.at < before).limit(AT_ONCE)
    return len(session.scalars(delete(Audit).where(Audit.id.in_(old)).returning(Audit.id)).all())


def expire_webhooks(session: Session, before: datetime) -> int:
    """Delete messages that were delivered or given up before then. An endpoint that one of them disabled is tried again
    when the next job names it."""
    old = select(WebhookMessage.id).where(WebhookMessage.ended_at < before).limit(AT_ONCE)
    old = old.with_for_update(skip_locked=True)  # a redelivery may hold one while it waits for another
    gone = delete(WebhookMessage).where(WebhookMessage.id.in_(old), WebhookMessage.ended_at < before)
    return len(session.scalars(gone.returning(WebhookMessage.id)).all())


def expire_endpoints(session: Session, before: datetime) -> int:
    """Forget that anything was delivered where nothing has been since then and no message goes."""
    named = exists().where(WebhookMessage.endpoint == WebhookEndpoint.endpoint)
    old = select(WebhookEndpoint.endpoint).where(WebhookEndpoint.delivered_at < before, ~named).limit(AT_ONCE)
    gone = delete(WebhookEndpoint).where(WebhookEndpoint.endpoint.in_(old), WebhookEndpoint.delivered_at < before)
    return len(session.scalars(gone.returning(WebhookEndpoint.endpoint)).all())


def _until_none(database: Database, expire_some: _Expire, before: datetime) -> int:
    total = 0
    while True:
        with database.transaction() as session:
            count = expire_some(session, before)
        total += count
        if count < AT_ONCE:
            return total
