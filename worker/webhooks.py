"""Tells webhooks how jobs ended. The network is reached from here, in the control worker, and never from an engine."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import cached_property
from importlib.metadata import version

import httpx
from sqlalchemy.orm import Session

from models import logs, webhook_secrets, webhook_urls, webhooks
from models.database import Database, now
from models.settings import Settings
from models.statuses import MessageStatus
from models.tables import WebhookMessage
from models.webhook_urls import Lookup, Refused, system_lookup
from models.webhook_views import AttemptView
from worker.post import Answer, NoAnswer, post

_logger = logging.getLogger(__name__)
_AGENT = f"modelpress/{version('modelpress')}"
_TO_WRITE_DOWN_SECONDS = 30.0


@dataclass(frozen=True)
class _Due:
    """A claimed message with what signs it, at the database's time of the claim."""

    message: WebhookMessage
    keys: list[bytes]
    at: datetime


class Courier:
    """Sends what is due. `lookup` resolves names and `clock` is the database's time; tests bring their own."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        draining: threading.Event,
        lookup: Lookup = system_lookup,
        clock: Callable[[Session], datetime] = now,
    ) -> None:
        self._database, self._settings, self._draining = database, settings, draining
        self._lookup, self._clock = lookup, clock
        self._lease = timedelta(
            seconds=settings.webhook_timeout_seconds + webhook_urls.LOOKUP_SECONDS * 2 + _TO_WRITE_DOWN_SECONDS
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
        answer, problem = self._send(due)
        attempt = AttemptView(
            at=due.at,
            status_code=answer.status_code if answer else None,
            problem=problem,
            seconds=round(time.monotonic() - began, 3),
        )
        with self._database.transaction() as session:
            moment = self._clock(session)
            wait = _wait_of(answer, moment)
            settled = webhooks.settle(session, message, attempt, now=moment, retry_after=wait)
        if settled is None:
            _logger.info("message %s: somebody else sends it now", message.id)
        elif settled.status == MessageStatus.PENDING:
            _logger.info("message %s: %s The next attempt is at %s.", message.id, problem, settled.next_attempt_at)
        elif problem is not None:
            _logger.warning("message %s is given up: %s", message.id, problem)
        else:
            _logger.info("message %s is delivered", message.id)

    def _send(self, due: _Due) -> tuple[Answer | None, str | None]:
        """The answer, if there was one, and why it is not a delivery, if it is none."""
        message, body = due.message, due.message.body.encode()
        timestamp = int(due.at.timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": _AGENT,
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": webhook_secrets.signature(due.keys, message.id, timestamp, body),
        }
        try:
            target = webhook_urls.parse(message.url, self._settings)
            addresses = webhook_urls.addresses_of(target, self._settings, self._lookup)
            seconds = self._settings.webhook_timeout_seconds
            answer = post(target, addresses, body, headers, seconds=seconds, tls=self._tls)
        except (Refused, NoAnswer) as refusal:
            return None, str(refusal)
        return answer, _problem_of(answer.status_code)


def _problem_of(status_code: int) -> str | None:
    if 200 <= status_code < 300:
        return None
    if 300 <= status_code < 400:
        return f"It answered {status_code}; redirects are not followed: name the URL they lead to."
    return f"It answered {status_code}."


def _wait_of(answer: Answer | None, now: datetime) -> timedelta | None:
    """What `Retry-After` asks for: seconds, or a date."""
    if answer is None or answer.retry_after is None:
        return None
    if answer.retry_after.isdecimal() and len(answer.retry_after) < 10:
        return timedelta(seconds=int(answer.retry_after))
    try:
        date = parsedate_to_datetime(answer.retry_after)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
