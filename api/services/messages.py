"""Messages to webhooks, and what they are signed with. Each function is one request's work."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select

from api.auth import Caller
from api.deps import Service
from api.pages import cursor_of, id_of
from api.services.jobs import own_job
from api.services.webhooks import master_secret, message_view
from models import audit, webhook_secrets, webhooks
from models.audit import Action
from models.database import now
from models.errors import Code, Failure
from models.settings import Settings
from models.statuses import TERMINAL, MessageStatus
from models.tables import Job, WebhookMessage, WebhookSecret
from models.webhook_views import WebhookMessagePage, WebhookMessageView, WebhookSecretList, WebhookSecretView


def of_job(service: Service, tenant: str, job_id: str) -> WebhookMessageView:
    """Raises `Failure` with `not_ready` before the job's end, and `not_found` where there is no message."""
    with service.database.read() as session:
        job = own_job(session, tenant, job_id)
        message = session.scalar(select(WebhookMessage).where(WebhookMessage.job_id == job_id))
        if message is None:
            raise _no_message(job)
        return message_view(message)


def redeliver(service: Service, caller: Caller, job_id: str) -> WebhookMessageView:
    """Send it again, by a new schedule, and let its endpoint be used again. Raises `Failure` as `of_job` does."""
    with service.database.transaction() as session:
        job, moment = own_job(session, caller.tenant, job_id), now(session)
        message = webhooks.redeliver(session, caller.tenant, job_id, moment)
        if message is None:
            raise _no_message(job)
        master_secret(service.settings)
        audit.record(session, caller, Action.WEBHOOK_REDELIVERED, job_id, moment)
        view = message_view(message)
    service.nudger.webhook_waits()
    return view


def page(
    service: Service, tenant: str, status: MessageStatus | None, limit: int, after: str | None
) -> WebhookMessagePage:
    behind = id_of(after, "msg")
    query = select(WebhookMessage).where(WebhookMessage.tenant == tenant)
    if status is not None:
        query = query.where(WebhookMessage.status == status)
    if behind is not None:
        query = query.where(WebhookMessage.id < behind)
    with service.database.read() as session:
        found = session.scalars(query.order_by(WebhookMessage.id.desc()).limit(limit + 1)).all()
    has_more = len(found) > limit
    return WebhookMessagePage(
        data=[message_view(message) for message in found[:limit]],
        has_more=has_more,
        next_cursor=cursor_of(found[limit - 1].id) if has_more else None,
    )


def secrets(service: Service, tenant: str) -> WebhookSecretList:
    master_secret(service.settings)
    with service.database.read() as session:
        rows = webhook_secrets.current(session, tenant, now(session))
    return WebhookSecretList(data=[_secret_view(service.settings, row) for row in rows])


def rotate(service: Service, caller: Caller, overlap: timedelta) -> WebhookSecretView:
    master_secret(service.settings)
    with service.database.transaction() as session:
        row = webhook_secrets.rotate(session, caller.tenant, overlap, now(session))
        audit.record(session, caller, Action.WEBHOOK_SECRET_ROTATED, row.id, row.created_at)
        return _secret_view(service.settings, row)


def _secret_view(settings: Settings, row: WebhookSecret) -> WebhookSecretView:
    secret = webhook_secrets.shown(webhook_secrets.derived(master_secret(settings), row))
    return WebhookSecretView(id=row.id, secret=secret, created_at=row.created_at, expires_at=row.expires_at)


def _no_message(job: Job) -> Failure:
    if not job.resolved_spec.get("webhook"):
        return Failure(Code.NOT_FOUND, "The job was given no `webhook`.")
    if job.status not in TERMINAL:
        return Failure(
            Code.NOT_READY, f"The job is {job.status}; its webhook is told once it has ended.", where=job.status
        )
    return Failure(Code.NOT_FOUND, "What became of this message is not known any more.")
