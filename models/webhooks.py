"""The life of a message to a job's webhook: written with the job's end, sent until it is delivered or given up.

pending -> delivered | failed | disabled, and back to pending when a person asks. Each change is one guarded statement,
as in `transitions.py`; who sends holds a lease, and a token without which nothing is written. A sender that dies is
forgotten when its lease runs out, and the message is sent again: at least once, under the same id.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, cast, get_args

from sqlalchemy import ColumnElement, and_, case, exists, func, literal, null, or_, select, update
from sqlalchemy.orm import Session, aliased

from models.database import lock, upsert
from models.errors import JobError
from models.ids import new_id
from models.statuses import MessageStatus
from models.tables import Job, UtcDateTime, WebhookEndpoint, WebhookMessage, dump
from models.webhook_views import AttemptView, EndedJob, EventType, WebhookMessageBody

SCHEDULE = tuple(
    timedelta(seconds=seconds)
    for seconds in (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)
)
"""Before each attempt, after the one before: what Standard Webhooks recommends, three days in all."""

JITTER = 0.1
"""Attempts are late by up to this share of their delay, so that those that failed together do not return together."""

LONGEST_WAIT = timedelta(hours=24)
"""That a receiver may ask for by `Retry-After`."""

AT_ONCE_FOR_A_TENANT = 2
"""Messages of one tenant that are being sent at a time: slow receivers of one delay nobody else's for long."""

ATTEMPTS_KEPT = 20
GONE = 410
Jitter = Callable[[], float]


def endpoint_of(tenant: str, url: str) -> str:
    return hashlib.sha256(f"{tenant}\0{url}".encode()).hexdigest()


def announce(session: Session, job: Job) -> None:
    """Write the message of a job that ends in this transaction, if it asked for one."""
    webhook = job.resolved_spec.get("webhook")
    if webhook is None:
        return
    endpoint, moment = endpoint_of(job.tenant, webhook["url"]), job.changed_at
    stopped = disabled_by(session, endpoint) is not None
    session.add(
        WebhookMessage(
            id=new_id("msg"),
            job_id=job.id,
            tenant=job.tenant,
            url=webhook["url"],
            endpoint=endpoint,
            body=_body(job),
            status=(MessageStatus.DISABLED if stopped else MessageStatus.PENDING).value,
            failures=0,
            token=0,
            attempts=[],
            created_at=moment,
            next_attempt_at=None if stopped else moment,
            ended_at=moment if stopped else None,
        )
    )
    session.flush()


def claim(session: Session, *, lease_until: datetime, now: datetime) -> WebhookMessage | None:
    """Take a message that is due, with a new token; `None`: none is. First come tenants of whom fewest are being sent,
    then what has been due for longest.

    Two senders never get the same one, and of no tenant are many sent at once."""
    due, busy = aliased(WebhookMessage, name="due"), aliased(WebhookMessage, name="busy")
    sending = (
        select(busy.tenant, func.count().label("messages"))
        .where(_is_pending(busy), busy.lease_expires_at > now)
        .group_by(busy.tenant)
        .subquery("sending")
    )
    held = func.coalesce(sending.c.messages, 0)
    first = (
        select(due.id)
        .outerjoin(sending, sending.c.tenant == due.tenant)
        .where(_is_due(due, now), held < AT_ONCE_FOR_A_TENANT)
        .order_by(held, due.next_attempt_at, due.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=due)
        .scalar_subquery()
    )
    guard = and_(WebhookMessage.id == first, _is_due(WebhookMessage, now))
    return _change(session, guard, token=WebhookMessage.token + 1, lease_expires_at=lease_until)


def settle(
    session: Session,
    message: WebhookMessage,
    attempt: AttemptView,
    *,
    now: datetime,
    retry_after: timedelta | None = None,
    jitter: Jitter = random.random,
) -> WebhookMessage | None:
    """Write down what became of a claimed `message`: delivered, to be sent again by the schedule, or given up.

    An answer of 410, or a whole schedule in which its endpoint took nothing, disables the endpoint: this message is
    marked as the reason, and others that wait are not sent. `None`: somebody else holds the message by now."""
    _lock_endpoint(session, message.endpoint)
    attempts = [*message.attempts, dump(attempt)][-ATTEMPTS_KEPT:]
    failures = message.failures + (attempt.problem is not None)
    values: dict[str, Any] = {"attempts": attempts, "failures": failures, "lease_expires_at": None}
    gone = attempt.status_code == GONE
    if attempt.problem is None:
        values |= _ended(MessageStatus.DELIVERED, now)
    elif gone or failures >= len(SCHEDULE):
        values |= _ended(MessageStatus.FAILED, now)
        if gone or not _took_any(session, message.endpoint, since=datetime.fromisoformat(attempts[-failures]["at"])):
            values["disabled_at"] = now
    else:
        delay = SCHEDULE[failures] * (1 + JITTER * jitter())
        values["next_attempt_at"] = now + max(delay, min(retry_after or timedelta(), LONGEST_WAIT))
    settled = _change(session, _is_held(message), **values)
    if settled is not None and attempt.problem is None:
        upsert(session, WebhookEndpoint(endpoint=message.endpoint, delivered_at=now))
    if settled is not None and settled.disabled_at is not None:
        waiting = and_(
            WebhookMessage.endpoint == message.endpoint, _is_pending(WebhookMessage), _is_free(WebhookMessage, now)
        )
        session.execute(update(WebhookMessage).where(waiting).values(**_ended(MessageStatus.DISABLED, now)))
    return settled


def postpone(session: Session, message: WebhookMessage, until: datetime) -> None:
    """Give back a claimed `message` that could not be sent for no fault of its receiver's: no attempt is counted."""
    _change(session, _is_held(message), next_attempt_at=until, lease_expires_at=None)


def redeliver(session: Session, tenant: str, job_id: str, now: datetime) -> WebhookMessage | None:
    """Send a job's message again, now and by a new schedule, and let others to its endpoint be sent from now on.

    One that is being sent comes again when its lease is over: until then it counts among those of its tenant.
    `None`: the tenant has no such message."""
    mine = and_(WebhookMessage.tenant == tenant, WebhookMessage.job_id == job_id)
    endpoint = session.scalar(select(WebhookMessage.endpoint).where(mine))
    if endpoint is None:
        return None
    _lock_endpoint(session, endpoint)
    leased = WebhookMessage.lease_expires_at > now
    message = _change(
        session,
        mine,
        status=MessageStatus.PENDING.value,
        failures=0,
        token=WebhookMessage.token + 1,
        next_attempt_at=case((leased, WebhookMessage.lease_expires_at), else_=literal(now, UtcDateTime())),
        lease_expires_at=case((leased, WebhookMessage.lease_expires_at), else_=null()),
        ended_at=None,
        disabled_at=None,
    )
    others = and_(WebhookMessage.endpoint == endpoint, WebhookMessage.disabled_at.is_not(None))
    session.execute(update(WebhookMessage).where(others).values(disabled_at=None))
    return message


def disabled_by(session: Session, endpoint: str) -> WebhookMessage | None:
    """The message because of which nothing is sent to this endpoint; `None`: it is sent to."""
    reason = and_(WebhookMessage.endpoint == endpoint, WebhookMessage.disabled_at.is_not(None))
    return session.scalars(select(WebhookMessage).where(reason).order_by(WebhookMessage.disabled_at.desc())).first()


def due_count(session: Session, now: datetime) -> int:
    return session.scalar(select(func.count()).where(_is_due(WebhookMessage, now))) or 0


def is_undelivered(job: type[Job]) -> ColumnElement[bool]:
    """Whether a job's message is still to be sent."""
    return exists().where(WebhookMessage.job_id == job.id, _is_pending(WebhookMessage))


def _body(job: Job) -> str:
    event = f"job.{job.status}"
    assert event in get_args(EventType)
    ended = EndedJob.model_validate(
        {
            "id": job.id,
            "name": job.name,
            "status": job.status,
            "model": job.network_id,
            "metadata": job.resolved_spec.get("metadata", {}),
            "error": JobError(**job.error) if job.error else None,
            "created_at": job.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
        }
    )
    return WebhookMessageBody(type=cast(EventType, event), timestamp=job.changed_at, data=ended).model_dump_json()


def _ended(status: MessageStatus, now: datetime) -> dict[str, Any]:
    return {"status": status.value, "next_attempt_at": None, "ended_at": now}


def _took_any(session: Session, endpoint: str, since: datetime) -> bool:
    taken = and_(WebhookEndpoint.endpoint == endpoint, WebhookEndpoint.delivered_at >= since)
    return bool(session.scalar(select(exists().where(taken))))


def _lock_endpoint(session: Session, endpoint: str) -> None:
    """Before a message of it is changed together with others, so that no two transactions wait for each other."""
    lock(session, f"webhook endpoint {endpoint}")


def _is_held(message: WebhookMessage) -> ColumnElement[bool]:
    """Whether it is still its claimer's."""
    return and_(WebhookMessage.id == message.id, _is_pending(WebhookMessage), WebhookMessage.token == message.token)


def _is_pending(table: type[WebhookMessage]) -> ColumnElement[bool]:
    return table.status == MessageStatus.PENDING


def _is_due(table: type[WebhookMessage], now: datetime) -> ColumnElement[bool]:
    return and_(_is_pending(table), table.next_attempt_at <= now, _is_free(table, now))


def _is_free(table: type[WebhookMessage], now: datetime) -> ColumnElement[bool]:
    return or_(table.lease_expires_at.is_(None), table.lease_expires_at <= now)


def _change(session: Session, guard: ColumnElement[bool], **values: Any) -> WebhookMessage | None:
    """The one place where a message is changed that is not given up with others."""
    statement = (
        update(WebhookMessage)
        .where(guard)
        .values(**values)
        .returning(WebhookMessage)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()
