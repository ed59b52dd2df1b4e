"""Tells webhooks how jobs ended. The network is reached from here, in the control worker, and never from an engine."""

from __future__ import annotations

import logging
import ssl
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from importlib.metadata import version

import httpx
from sqlalchemy.orm import Session

from models import logs, webhook_secrets, webhook_urls, webhooks
from models.database import Database, now
from models.settings import Settings
from models.statuses import MessageStatus
from models.tables import WebhookMessage
from models.webhook_urls import Busy, Refused, TenantLookup, system_lookup
from models.webhook_views import AttemptView
from worker.post import Answer, NoAnswer, post

_logger = logging.getLogger(__name__)
_AGENT = f"modelpress/{version('modelpress')}"
_TO_WRITE_DOWN_SECONDS = 30.0
_POSTPONED = timedelta(seconds=30)
"""A message whose host's name cannot be looked up now, because too many others are."""


@dataclass(frozen=True)
class _Due:
    """A claimed message with what signs it, at the database's time of the claim."""

    message: WebhookMessage
    keys: list[bytes]
    at: datetime


@dataclass(frozen=True)
class _Outcome:
    """What a sending came to. `problem`: why it is no delivery; `wait`: what `Retry-After` asked for."""

    status_code: int | None = None
    problem: str | None = None
    wait: timedelta | None = None


class Courier:
    """Sends what is due. `lookup` resolves names and `clock` is the database's time; tests bring their own."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        draining: threading.Event,
        lookup: TenantLookup = system_lookup,
        clock: Callable[[Session], datetime] = now,
    ) -> None:
        self._database, self._settings, self._draining = database, settings, draining
        self._lookup, self._clock = lookup, clock
        self._lease = timedelta(
            seconds=webhook_urls.LOOKUP_SECONDS + settings.webhook_timeout_seconds + _TO_WRITE_DOWN_SECONDS
        )

    def deliver(self) -> None:
        """Send until nothing is due: one nudge may stand for several lost ones."""
        if self._settings.webhook_secret is None:
            _logger.error("Webhooks wait: MODELPRESS_WEBHOOK_SECRET is set for the api, but not for this worker.")
            return
        while not self._draining.is_set() and (due := self._claim(self._settings.webhook_secret)):
            with logs.about(job_id=due.message.job_id):
                self._deliver(due)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Of the machine's SSL_CERT_FILE or SSL_CERT_DIR, else the authorities that certifi knows."""
        return httpx.create_ssl_context()

    def _claim(self, master: str) -> _Due | None:
        with self._database.transaction() as session:
            moment = self._clock(session)
            message = webhooks.claim(session, lease_until=moment + self._lease, now=moment)
            if message is None:
                return None
            rows = webhook_secrets.ensured(session, message.tenant, moment)
            return _Due(message, [webhook_secrets.derived(master, row) for row in rows], moment)

    def _deliver(self, due: _Due) -> None:
        message, began = due.message, time.monotonic()
        try:
            outcome = self._send(due)
        except Busy:
            with self._database.transaction() as session:
                webhooks.postpone(session, message, self._clock(session) + _POSTPONED)
            _logger.warning("message %s waits: too many names are being looked up", message.id)
            return
        problem, seconds = outcome.problem, round(time.monotonic() - began, 3)
        attempt = AttemptView(at=due.at, status_code=outcome.status_code, problem=problem, seconds=seconds)
        with self._database.transaction() as session:
            moment = self._clock(session)
            settled = webhooks.settle(session, message, attempt, now=moment, retry_after=outcome.wait)
        if settled is None:
            _logger.info("message %s: somebody else sends it now", message.id)
        elif settled.status == MessageStatus.PENDING:
            _logger.info("message %s: %s The next attempt is at %s.", message.id, problem, settled.next_attempt_at)
        elif problem is not None:
            _logger.warning("message %s is given up: %s", message.id, problem)
        else:
            _logger.info("message %s is delivered", message.id)

    def _send(self, due: _Due) -> _Outcome:
        """Raises `Busy` and nothing else: who is told nothing sends the same message again, for ever."""
        try:
            return _outcome_of(self._post(due), due.at)
        except (Refused, NoAnswer) as refusal:
            return _Outcome(problem=str(refusal))
        except Busy:
            raise
        except Exception as error:
            # Where it was, and not the error's own words, which may have the URL.
            where = "".join(traceback.format_tb(error.__traceback__))
            _logger.error("message %s: %s while it was sent\n%s", due.message.id, type(error).__name__, where)
            return _Outcome(problem="It could not be sent, by a mistake of the service's that its log tells.")

    def _post(self, due: _Due) -> Answer:
        message, body = due.message, due.message.body.encode()
        timestamp = int(due.at.timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": _AGENT,
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": webhook_secrets.signature(due.keys, message.id, timestamp, body),
        }
        target = webhook_urls.parse(message.url, self._settings)
        addresses = webhook_urls.addresses_of(target, self._settings, partial(self._lookup, message.tenant))
        return post(target, addresses, body, headers, seconds=self._settings.webhook_timeout_seconds, tls=self._tls)


def _outcome_of(answer: Answer, now: datetime) -> _Outcome:
    wait = None if answer.retry_after is None else _wait_of(answer.retry_after, now)
    return _Outcome(answer.status_code, _problem_of(answer.status_code), wait)


def _problem_of(status_code: int) -> str | None:
    if 200 <= status_code < 300:
        return None
    if 300 <= status_code < 400:
        return f"It answered {status_code}; redirects are not followed: name the URL they lead to."
    return f"It answered {status_code}."


def _wait_of(retry_after: str, now: datetime) -> timedelta | None:
    """What the header asks for: seconds, or a date. `None`: it is neither."""
    if retry_after.isdecimal() and len(retry_after) < 10:
        return timedelta(seconds=int(retry_after))
    try:
        date = parsedate_to_datetime(retry_after)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, OverflowError):
        return None
