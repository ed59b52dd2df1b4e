"""Who asks: bearer keys, kept only as SHA-256, and open access on loopback."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.database import Database, now
from models.errors import Code, Failure
from models.ids import new_id
from models.settings import Settings
from models.tables import Key

PREFIX = "mp_"
SECRET_BYTES = 32
MINIMUM_LENGTH = len(PREFIX) + 32
"""Shorter bootstrap keys could be guessed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose objects a request may see, and whether it may change them. `key_id` is `None` under open access."""

    tenant: str
    read_only: bool = False
    key_id: str | None = None


class NotStarting(Exception):
    """The settings would leave the service open, or closed to everyone."""


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def create_key(session: Session, tenant: str, name: str, *, read_only: bool = False) -> str:
    """Add a key of 256 random bits and return its secret, which is stored nowhere."""
    secret = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    _add(session, secret, tenant, name, read_only)
    return secret


def _add(session: Session, secret: str, tenant: str, name: str, read_only: bool) -> None:
    session.add(
        Key(
            id=new_id("key"),
            tenant=tenant,
            name=name,
            secret_sha256=_hash(secret),
            read_only=read_only,
            created_at=now(session),
            revoked_at=None,
        )
    )
    session.flush()


def prepare_access(settings: Settings, database: Database) -> None:
    """Make the bootstrap key when there is no key yet.

    Raises `NotStarting` for open access beyond loopback, for closed access without any key, and for a weak key.
    """
    if settings.open_access:
        if not is_loopback(settings.host):
            raise NotStarting(
                f"Open access is for loopback, but the service binds to {settings.host}. "
                "Unset MODELPRESS_OPEN_ACCESS and set MODELPRESS_BOOTSTRAP_KEY."
            )
        return
    with database.transaction() as session:
        if session.scalar(select(func.count()).where(Key.revoked_at.is_(None))):
            return
        if session.scalar(select(func.count()).select_from(Key)):
            raise NotStarting("Every key is revoked. Make another: `modelpress keys create`.")
        secret = settings.bootstrap_key
        if secret is None:
            raise NotStarting(
                "There is no key yet. Run `modelpress keys create`, or set MODELPRESS_BOOTSTRAP_KEY once, "
                "or set MODELPRESS_OPEN_ACCESS=true on loopback."
            )
        if not secret.startswith(PREFIX) or len(secret) < MINIMUM_LENGTH:
            raise NotStarting(
                f"MODELPRESS_BOOTSTRAP_KEY must begin with {PREFIX} and have {MINIMUM_LENGTH} characters."
            )
        _add(session, secret, settings.tenant, "bootstrap", read_only=False)


def caller_of(settings: Settings, database: Database, secret: str | None) -> Caller:
    """The caller behind a bearer secret. Raises `Failure` with `unauthorized`.

    Under open access no key is asked for, and one that is sent does not matter.
    """
    if settings.open_access:
        return Caller(settings.tenant)
    if secret is None:
        raise Failure(Code.UNAUTHORIZED, "No key was sent.")
    with database.read() as session:
        key = session.scalar(select(Key).where(Key.secret_sha256 == _hash(secret), Key.revoked_at.is_(None)))
        if key is None:
            raise Failure(Code.UNAUTHORIZED, "The key is unknown or revoked.")
        return Caller(key.tenant, key.read_only, key.id)


def is_still_allowed(database: Database, caller: Caller) -> bool:
    """Whether the caller's key was not revoked since; for answers that go on for long."""
    if caller.key_id is None:
        return True
    with database.read() as session:
        alive = select(Key.id).where(Key.id == caller.key_id, Key.revoked_at.is_(None))
        return session.scalar(alive) is not None
