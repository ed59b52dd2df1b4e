"""What webhooks are signed with: https://www.standardwebhooks.com, version 1.0.

No secret is stored. Each is derived (HKDF, RFC 5869) from the deployment's master secret, which only its environment
has, and a row's random salt, which alone is useless.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from models.database import lock
from models.ids import new_id
from models.tables import WebhookSecret

SALT_BYTES = 16
MOST = 5
"""Secrets of one tenant that sign at once: each makes the header of every message longer."""

_PURPOSE = b"modelpress webhook signature 1"
_NEWEST_FIRST = (WebhookSecret.created_at.desc(), WebhookSecret.id.desc())
"""Ids of one millisecond are in no order."""


def current(session: Session, tenant: str, now: datetime) -> Sequence[WebhookSecret]:
    """Those that messages are signed with: the newest first, behind it those a rotation has not retired yet."""
    alive = or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > now)
    return session.scalars(
        select(WebhookSecret).where(WebhookSecret.tenant == tenant, alive).order_by(*_NEWEST_FIRST)
    ).all()


def ensured(session: Session, tenant: str, now: datetime) -> Sequence[WebhookSecret]:
    """As `current`; the first one is made here."""
    return current(session, tenant, now) or [_add(session, tenant, now)]


def rotate(session: Session, tenant: str, overlap: timedelta, now: datetime) -> WebhookSecret:
    """Make a new secret. Earlier ones sign beside it for as long as `overlap` says, and no longer; of more than five in
    all the oldest end at once."""
    lock(session, f"webhook secrets {tenant}")
    mine = WebhookSecret.tenant == tenant
    session.execute(delete(WebhookSecret).where(mine, WebhookSecret.expires_at <= now))
    later = or_(WebhookSecret.expires_at.is_(None), WebhookSecret.expires_at > now + overlap)
    session.execute(update(WebhookSecret).where(mine, later).values(expires_at=now + overlap))
    made = _add(session, tenant, now)
    newest = select(WebhookSecret.id).where(mine).order_by(*_NEWEST_FIRST).limit(MOST)
    session.execute(delete(WebhookSecret).where(mine, WebhookSecret.id.not_in(newest)))
    return made


def derived(master: str, row: WebhookSecret) -> bytes:
    """The 32 bytes of a secret."""
    extracted = hmac.digest(row.salt, master.encode(), hashlib.sha256)
    return hmac.digest(extracted, _PURPOSE + row.tenant.encode() + b"\x01", hashlib.sha256)


def shown(secret: bytes) -> str:
    """As receivers are given it."""
    return "whsec_" + b64encode(secret).decode()


def signature(keys: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one for each secret."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return " ".join("v1," + b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in keys)


def _add(session: Session, tenant: str, now: datetime) -> WebhookSecret:
    row = WebhookSecret(
        id=new_id("whs"), tenant=tenant, salt=secrets.token_bytes(SALT_BYTES), created_at=now, expires_at=None
    )
    session.add(row)
    session.flush()
    return row
