"""`python -m api keys …`: keys are made, listed and revoked on the server's machine, by who may read its database.

There is no route for it: a key never makes another, so a stolen one opens its tenant and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from api.auth import create_key
from models.database import Database, now
from models.settings import Settings
from models.tables import Key


def list_keys(session: Session, tenant: str | None = None) -> Sequence[Key]:
    """Oldest first, also the revoked ones; `None`: of every tenant."""
    query = select(Key).order_by(Key.id)
    return session.scalars(query if tenant is None else query.where(Key.tenant == tenant)).all()


def revoke_key(session: Session, key_id: str) -> Key | None:
    """From the next request on it opens nothing. `None`: there is no such key. Revoking twice changes nothing."""
    session.execute(update(Key).where(Key.id == key_id, Key.revoked_at.is_(None)).values(revoked_at=now(session)))
    return session.get(Key, key_id)


def add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = commands.add_parser("create", help="make a key and print it, once; only its hash is stored")
    create.add_argument("--tenant", help="whose networks, data sets and jobs it opens (default: MODELPRESS_TENANT)")
    create.add_argument("--name", default="key", help="to know it again in the list")
    create.add_argument("--read-only", action="store_true", help="it may look and download, and change nothing")
    listing = commands.add_parser("list", help="list keys, never their secrets")
    listing.add_argument("--tenant")
    listing.add_argument("--json", action="store_true")
    revoke = commands.add_parser("revoke", help="make a key useless at once")
    revoke.add_argument("key", help="its id, as `list` shows it")


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Returns the exit status. Standard output has the answer alone, standard error names the database."""
    shown = make_url(settings.database_url).render_as_string(hide_password=True)
    print(f"keys of {shown}", file=sys.stderr)
    database = Database(settings.database_url)
    try:
        with database.transaction() as session:
            answer = _ACTIONS[options.action](session, options, settings)
    finally:
        database.close()
    if answer is None:
        print(f"There is no key {options.key}.", file=sys.stderr)
        return 2
    print(answer)
    return 0


def _create(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    return create_key(session, options.tenant or settings.tenant, options.name, read_only=options.read_only)


def _list(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    keys = [_shown(key) for key in list_keys(session, options.tenant)]
    if options.json:
        return json.dumps(keys, indent=1)
    rows = [_COLUMNS, *(tuple(key[column] or "-" for column in _COLUMNS) for key in keys)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _revoke(session: Session, options: argparse.Namespace, settings: Settings) -> str | None:
    key = revoke_key(session, options.key)
    return None if key is None else f"{key.id} of tenant {key.tenant} is revoked."


_ACTIONS = {"create": _create, "list": _list, "revoke": _revoke}
_COLUMNS = ("id", "tenant", "name", "rights", "created_at", "revoked_at")


def _shown(key: Key) -> dict[str, str | None]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "rights": "read" if key.read_only else "all",
        "created_at": _moment(key.created_at),
        "revoked_at": _moment(key.revoked_at),
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds").replace("+00:00", "Z")
