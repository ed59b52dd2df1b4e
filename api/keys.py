"""`python -m api keys …`: keys are made, listed, rotated and revoked on the server's machine, by who may read its
database.

There is no route for it: a key never makes another, so a stolen one opens its tenant and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.auth import add_key, create_key, new_secret, opens
from api.operate import Refused, actions_of, duration, shown_moment, table
from models import audit
from models.audit import Action, Actor
from models.database import now
from models.scopes import ALL, READ_ONLY, Scope, Scopes, scopes_of
from models.settings import Settings
from models.tables import Key

GRACE = timedelta(hours=24)


def list_keys(session: Session, tenant: str | None = None) -> Sequence[Key]:
    """Oldest first, also those that open nothing any more; `None`: of every tenant."""
    query = select(Key).order_by(Key.id)
    return session.scalars(query if tenant is None else query.where(Key.tenant == tenant)).all()


def revoke_key(session: Session, key_id: str) -> Key | None:
    """From the next request on it opens nothing. `None`: there is no such key. Revoking twice changes nothing."""
    moment = now(session)
    alive = (Key.id == key_id, Key.revoked_at.is_(None))
    tenant = session.scalar(update(Key).where(*alive).values(revoked_at=moment).returning(Key.tenant))
    if tenant is not None:
        audit.record(session, Actor(tenant), Action.KEY_REVOKED, key_id, moment)
    return session.get(Key, key_id)


class Rotated(NamedTuple):
    secret: str
    successor: Key
    ends_at: datetime


def rotate_key(session: Session, key_id: str, grace: timedelta, lifetime: timedelta | None = None) -> Rotated:
    """A successor with the same tenant, name and scopes; the old key opens as long as `grace`, if it does not end
    sooner. The successor lives for `lifetime`, by default as long as the old key was made for.

    Raises `Refused` for a key that is unknown, ended, or has a successor already."""
    moment = now(session)
    old = session.get(Key, key_id)
    if old is None:
        raise Refused(f"There is no key {key_id}.")
    if lifetime is None and old.expires_at is not None:
        lifetime = old.expires_at - old.created_at
    ends_at = min(moment + grace, old.expires_at or datetime.max.replace(tzinfo=moment.tzinfo))
    secret = new_secret()
    expires_at = None if lifetime is None else moment + lifetime
    successor = add_key(session, secret, old.tenant, old.name, scopes_of(old.scopes), expires_at)
    changed = session.scalar(
        update(Key)
        .where(Key.id == key_id, opens(moment), Key.successor_id.is_(None))
        .values(expires_at=ends_at, successor_id=successor.id)
        .returning(Key.id)
    )
    if changed is None:
        what = f"was rotated to {old.successor_id}; rotate that one" if old.successor_id else "is revoked or expired"
        raise Refused(f"The key {key_id} {what}.")
    audit.record(session, Actor(old.tenant), Action.KEY_ROTATED, key_id, moment)
    return Rotated(secret, successor, ends_at)


def add_commands(parser: argparse.ArgumentParser) -> None:
    add = actions_of(parser)
    create = add("create", "make a key and print it, once; only its hash is stored", _create)
    create.add_argument("--tenant", help="whose networks, data sets and jobs it opens (default: MODELPRESS_TENANT)")
    create.add_argument("--name", default="key", help="to know it again in the list")
    rights = create.add_mutually_exclusive_group()
    rights.add_argument(
        "--scopes", type=_scopes, default=ALL, help=f"what it may do, by default all of it: {','.join(Scope)}"
    )
    rights.add_argument(
        "--read-only",
        dest="scopes",
        action="store_const",
        const=READ_ONLY,
        help="it may look and download, and change nothing: --scopes read",
    )
    create.add_argument("--expires", type=duration, metavar="90d", help="how long it lives (default: until revoked)")
    listing = add("list", "list keys, never their secrets", _list)
    listing.add_argument("--tenant")
    listing.add_argument("--json", action="store_true")
    rotate = add(
        "rotate", "make a successor with the same rights and print it; the old key ends after a while", _rotate
    )
    rotate.add_argument("key", help="its id, as `list` shows it")
    rotate.add_argument("--grace", type=duration, default=GRACE, metavar="24h", help="how long the old one still opens")
    rotate.add_argument(
        "--expires", type=duration, metavar="90d", help="how long the successor lives (default: as the old one)"
    )
    revoke = add("revoke", "make a key useless at once", _revoke)
    revoke.add_argument("key", help="its id, as `list` shows it")


def _scopes(text: str) -> Scopes:
    names = [name.strip() for name in text.split(",")]
    unknown = sorted(set(names) - set(Scope))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(Scope)}")
    return frozenset(map(Scope, names))


def _create(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    expires_at = None if options.expires is None else now(session) + options.expires
    tenant = options.tenant or settings.tenant
    return create_key(session, tenant, options.name, scopes=options.scopes, expires_at=expires_at)


def _list(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    keys = [_shown(key) for key in list_keys(session, options.tenant)]
    return json.dumps(keys, indent=1) if options.json else table(_COLUMNS, keys)


def _rotate(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    rotated = rotate_key(session, options.key, options.grace, options.expires)
    until = f"{options.key} opens until {shown_moment(rotated.ends_at)}"
    print(f"{until}; its successor is {rotated.successor.id}.", file=sys.stderr)
    return rotated.secret


def _revoke(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    key = revoke_key(session, options.key)
    if key is None:
        raise Refused(f"There is no key {options.key}.")
    return f"{key.id} of tenant {key.tenant} is revoked."


_COLUMNS = (
    "id", "tenant", "name", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at", "successor",
)  # fmt: skip


def _shown(key: Key) -> dict[str, str | None]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "scopes": key.scopes.replace(" ", ","),
        "created_at": shown_moment(key.created_at),
        "last_used_at": shown_moment(key.last_used_at),
        "expires_at": shown_moment(key.expires_at),
        "revoked_at": shown_moment(key.revoked_at),
        "successor": key.successor_id,
    }
