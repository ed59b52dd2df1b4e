"""Webhooks of jobs, before they are queued and after they have ended."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.errors import HeaderedFailure
from models import webhook_secrets, webhook_urls, webhooks
from models.database import now
from models.errors import Code, Failure, FieldProblem
from models.settings import Settings
from models.spec import Spec
from models.statuses import MessageStatus
from models.tables import Job, WebhookMessage
from models.webhook_urls import Busy, Refused, system_lookup
from models.webhook_views import AttemptView, JobWebhook, WebhookMessageView


def master_secret(settings: Settings) -> str:
    """Raises `Failure` with `unsupported_here` where there is none."""
    if settings.webhook_secret is None:
        problem = FieldProblem(pointer="/webhook", message="Set MODELPRESS_WEBHOOK_SECRET, or leave `webhook` out")
        raise Failure(
            Code.UNSUPPORTED_HERE,
            "This deployment cannot sign webhooks: MODELPRESS_WEBHOOK_SECRET is not set.",
            problems=(problem,),
        )
    return settings.webhook_secret


def check(session: Session, settings: Settings, tenant: str, spec: Spec) -> None:
    """What can be known of a spec's webhook without the network. Raises `Failure`."""
    if spec.webhook is None:
        return
    master_secret(settings)
    try:
        webhook_urls.parse(spec.webhook.url, settings)
    except Refused as refusal:
        raise _refused(str(refusal)) from None
    reason = webhooks.disabled_by(session, webhooks.endpoint_of(tenant, spec.webhook.url))
    if reason is not None:
        job = f"/jobs/{reason.job_id}/webhook"
        raise _refused(
            f"Nothing is sent to this URL since {reason.disabled_at:%Y-%m-%d %H:%M} UTC: {_problem(reason)} "
            f"`POST {job}/redeliver` tries again and lets it be used; `GET {job}` tells more."
        )


def resolve(settings: Settings, tenant: str, spec: Spec) -> None:
    """Whether the webhook's host leads where it may. Asks the network, so it belongs into no transaction.

    Raises `Failure`, with `rate_limited` or `unavailable` where its name cannot be looked up now."""
    if spec.webhook is not None:
        try:
            target = webhook_urls.parse(spec.webhook.url, settings)
            webhook_urls.addresses_of(target, settings, partial(system_lookup, tenant))
        except Refused as refusal:
            raise _refused(str(refusal)) from None
        except Busy as busy:
            raise _busy(busy) from None


def prepare(session: Session, tenant: str, spec: Spec) -> None:
    """See to it that there is a secret to verify the message with before there is a message."""
    if spec.webhook is not None:
        webhook_secrets.ensured(session, tenant, now(session))


def states(session: Session, jobs: Iterable[Job]) -> dict[str, JobWebhook]:
    """What became of the messages of those of `jobs` that have one, by the job's id."""
    asking = [job.id for job in jobs if job.finished_at is not None and job.resolved_spec.get("webhook")]
    if not asking:
        return {}
    messages = session.scalars(select(WebhookMessage).where(WebhookMessage.job_id.in_(asking)))
    return {message.job_id: _state(message) for message in messages}


def message_view(message: WebhookMessage) -> WebhookMessageView:
    return WebhookMessageView(
        id=message.id,
        job_id=message.job_id,
        url=message.url,
        status=MessageStatus(message.status),
        created_at=message.created_at,
        next_attempt_at=message.next_attempt_at,
        ended_at=message.ended_at,
        disabled_at=message.disabled_at,
        attempts=[AttemptView.model_validate(attempt) for attempt in message.attempts],
    )


def _state(message: WebhookMessage) -> JobWebhook:
    delivered = message.status == MessageStatus.DELIVERED
    return JobWebhook(
        status=MessageStatus(message.status),
        attempts=message.failures + delivered,
        next_attempt_at=message.next_attempt_at,
        problem=None if delivered else _problem(message),
    )


def _problem(message: WebhookMessage) -> str | None:
    if message.status == MessageStatus.DISABLED:
        return "An earlier message to this URL could not be delivered, so this one was not sent."
    problem: str | None = message.attempts[-1]["problem"] if message.attempts else None
    return problem


def _busy(busy: Busy) -> Failure:
    if busy.by_all:
        return Failure(Code.UNAVAILABLE, "Too many hosts of webhooks are being looked up; yours was not.")
    return HeaderedFailure(
        Code.RATE_LIMITED,
        f"{webhook_urls.LOOKUPS_OF_A_TENANT} hosts of your webhooks are being looked up, as many as are allowed.",
        headers={"Retry-After": "1"},
    )


def _refused(message: str) -> Failure:
    return Failure(
        Code.INVALID_SPEC,
        f"/webhook/url: {message}",
        problems=(FieldProblem(pointer="/webhook/url", message=message),),
    )
