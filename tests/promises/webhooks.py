"""P33: the receiver of a webhook is away for days. Days pass on the clock that senders are given; the rest is real."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from uuid import uuid4

from sqlalchemy import select

from models import webhook_secrets, webhooks
from models.database import now
from models.settings import Settings
from models.spec import Webhook
from models.statuses import MessageStatus
from models.tables import WebhookMessage
from tests.promises.outcome import Outcome
from tests.promises.place import Place
from tests.receivers import Answer, Receiver, answering
from worker.webhooks import Courier

_MASTER = "a deployment's master secret, 32+"
_PATIENT, _IMPATIENT = (
    Settings(
        webhook_secret=_MASTER, webhook_http=True, webhook_allowed=("127.0.0.1/32",), webhook_timeout_seconds=seconds
    )
    for seconds in (2.0, 0.2)
)


def _asleep(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(0.4)


_AWAY: tuple[Answer, ...] = (
    answering(500),
    answering(302, Location="http://127.0.0.1/"),
    _asleep,
    lambda handler: handler.connection.close(),
)


def receiver_away_for_days(place: Place, injections: int) -> Outcome:
    """By turns it stays away, or comes back before one of the attempts; senders die now and then."""
    outcome, chance = Outcome(injections), random.Random(33)
    sender = _Sender(place)
    for number in range(injections):
        back_at = chance.randrange(1, len(webhooks.SCHEDULE)) if number % 2 else None
        with Receiver(_AWAY[number // 2 % len(_AWAY)]) as receiver:
            _one(place, sender, outcome, receiver, back_at, dies=chance.randrange(len(webhooks.SCHEDULE)))
    return outcome


class _Sender:
    """The worker's own, on a clock that is set."""

    def __init__(self, place: Place) -> None:
        self._moment = datetime.now(UTC)
        self._patient, self._impatient = (
            Courier(place.fleet.database, settings, threading.Event(), clock=lambda _: self._moment)
            for settings in (_PATIENT, _IMPATIENT)
        )

    def send(self, moment: datetime, receiver: Receiver) -> None:
        """All that is due then. Who sleeps is not waited for; who answers has time to, however busy the cores are."""
        self._moment = moment
        (self._impatient if receiver.answer is _asleep else self._patient).deliver()


def _one(place: Place, sender: _Sender, outcome: Outcome, receiver: Receiver, back_at: int | None, dies: int) -> None:
    # A port may have been an earlier receiver's that is disabled by now.
    spec = place.fleet.spec("finish", {}).model_copy(update={"webhook": Webhook(url=f"{receiver.url}?{uuid4()}")})
    job_id = place.fleet.submit_spec(spec, nudge=False)
    place.fleet.cancel(job_id)
    times: list[datetime] = []
    for attempt in range(len(webhooks.SCHEDULE)):
        if attempt == back_at:
            receiver.answer = answering(204)
        message = _message(place, job_id)
        if message.next_attempt_at is None:
            break
        due = message.next_attempt_at
        if attempt == dies:
            due = _claimed_by_one_that_dies(place, due)
        times.append(due)
        began = time.monotonic()
        sender.send(due - timedelta(seconds=1), receiver)
        sender.send(due, receiver)
        outcome.seconds.append(time.monotonic() - began)
    _judge(place, outcome, receiver, _message(place, job_id), times, back_at)


def _judge(
    place: Place,
    outcome: Outcome,
    receiver: Receiver,
    message: WebhookMessage,
    times: list[datetime],
    back_at: int | None,
) -> None:
    tries = len(webhooks.SCHEDULE) if back_at is None else back_at + 1
    outcome.lost += back_at is not None and message.status != MessageStatus.DELIVERED
    outcome.duplicated += max(0, len(receiver.received) - tries)
    outcome.require(len(receiver.received) == tries, f"{len(receiver.received)} attempts instead of {tries}")
    outcome.require({each.id for each in receiver.received} == {message.id}, "not the same webhook-id each time")
    secret = _secret(place)
    outcome.require(all(each.is_signed_with(secret) for each in receiver.received), "a signature does not verify")
    for earlier, later, delay in zip(times, times[1:], webhooks.SCHEDULE[1:], strict=False):
        most = delay * (1 + webhooks.JITTER) + timedelta(seconds=100)  # a lease, where a sender died
        outcome.require(delay <= later - earlier <= most, f"{later - earlier} between attempts instead of {delay}")
    if back_at is None:
        with place.fleet.database.read() as session:
            reason = webhooks.disabled_by(session, message.endpoint)
        disabled = message.status == MessageStatus.FAILED and reason is not None and reason.id == message.id
        outcome.require(disabled, "given up, but not disabled and visible")


def _claimed_by_one_that_dies(place: Place, due: datetime) -> datetime:
    """When its lease runs out."""
    lease = due + timedelta(seconds=60)
    with place.fleet.database.transaction() as session:
        webhooks.claim(session, lease_until=lease, now=due)
    return lease


def _message(place: Place, job_id: str) -> WebhookMessage:
    with place.fleet.database.read() as session:
        return session.scalars(select(WebhookMessage).where(WebhookMessage.job_id == job_id)).one()


def _secret(place: Place) -> str:
    with place.fleet.database.transaction() as session:
        [row] = webhook_secrets.ensured(session, "t", now(session))
        return webhook_secrets.shown(webhook_secrets.derived(_MASTER, row))
