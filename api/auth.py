"""Who asks: bearer keys, kept only as SHA-256, and open access on loopback."""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session

from models import audit
from models.audit import Action, Actor
from models.database import Database, now
from models.errors import Code, Failure
from models.ids import new_id
from models.quotas import Limits, limits_of
from models.scopes import ALL, Scopes, scopes_of, stored
from models.settings import Settings
from models.tables import Key, Tenant

PREFIX = "mp_"
SECRET_BYTES = 32
MINIMUM_LENGTH = len(PREFIX) + 40
"""Of a bootstrap key: 160 bits, even in hexadecimal digits. Who has a shorter one's hash might find it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller(Actor):
    """Whose objects a request may see, what it may do and how much. `key_id` is `None` under open access."""

    limits: Limits
    scopes: Scopes


class NotStarting(Exception):
    """The settings would leave the service open, or closed to everyone."""


def hash_of(secret: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret.encode()).digest()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def create_key(
    session: Session, tenant: str, name: str, *, scopes: Scopes = ALL, expires_at: datetime | None = None
) -> str:
    """Add a key of 256 random bits and return its secret, which is stored nowhere."""
    secret = new_secret()
    add_key(session, secret, tenant, name, scopes, expires_at)
    return secret


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def add_key(
    session: Session, secret: str, tenant: str, name: str, scopes: Scopes, expires_at: datetime | None = None
) -> Key:
    moment = now(session)
    key = Key(
        id=new_id("key"),
        tenant=tenant,
        name=name,
        secret_sha256=hash_of(secret),
        scopes=stored(scopes),
        created_at=moment,
        expires_at=expires_at,
    )
    session.add(key)
    session.flush()
    audit.record(session, Actor(tenant), Action.KEY_CREATED, key.id, moment)
    return key


def opens(moment: datetime) -> ColumnElement[bool]:
    """Of a key: that it is neither revoked nor expired."""
    return and_(Key.revoked_at.is_(None), or_(Key.expires_at.is_(None), Key.expires_at > moment))


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
        if session.scalar(select(func.count()).where(opens(now(session)))):
            return
        if session.scalar(select(func.count()).select_from(Key)):
            raise NotStarting("Every key is revoked or expired. Make another: `modelpress keys create`.")
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
        add_key(session, secret, settings.tenant, "bootstrap", ALL)


def caller_of(settings: Settings, database: Database, secret: str | None, request_id: str | None) -> Caller:
    """The caller behind a bearer secret. Raises `Failure` with `unauthorized` and `key_expired`.

    Under open access no key is asked for, and one that is sent does not matter; nobody counts the requests of the
    only user there is.
    """
    if settings.open_access:
        limits = replace(limits_of(settings, None), requests_per_second=None)
        return Caller(settings.tenant, request_id=request_id, limits=limits, scopes=ALL)
    if secret is None:
        raise Failure(Code.UNAUTHORIZED, "No key was sent.")
    with database.read() as session:
        known = select(Key, Tenant).outerjoin(Tenant, Tenant.name == Key.tenant)
        row = session.execute(known.where(Key.secret_sha256 == hash_of(secret), Key.revoked_at.is_(None))).one_or_none()
        if row is None:
            raise Failure(Code.UNAUTHORIZED, "The key is unknown or revoked.")
        key, tenant = row
        if key.expires_at is not None and key.expires_at <= now(session):
            raise Failure(Code.KEY_EXPIRED, f"The key expired at {key.expires_at:%Y-%m-%d %H:%M:%S} UTC.")
        limits = limits_of(settings, tenant)
        return Caller(key.tenant, key.id, request_id, limits=limits, scopes=scopes_of(key.scopes))


def is_still_allowed(database: Database, caller: Caller) -> bool:
    """Whether the caller's key was not revoked, and did not expire, since; for answers that go on for long."""
    if caller.key_id is None:
        return True
    with database.read() as session:
        return session.scalar(select(Key.id).where(Key.id == caller.key_id, opens(now(session)))) is not None
