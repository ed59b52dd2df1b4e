"""`python -m api audit`: the audit trail, read on the server's machine by who may read its database."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api.operate import duration, shown_moment, table
from models.audit import Action, Outcome
from models.database import now
from models.settings import Settings
from models.tables import Audit

COLUMNS = ("at", "tenant", "key_id", "request_id", "action", "object_id", "outcome")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tenant")
    parser.add_argument("--key", metavar="ID", help="the key that acted")
    parser.add_argument("--action", type=Action, choices=list(Action), metavar="ACTION", help=", ".join(Action))
    parser.add_argument("--object", metavar="ID", help="a network, data set, upload, job (with its files) or key")
    parser.add_argument("--request", metavar="ID", help="the X-Request-Id of the call")
    parser.add_argument("--outcome", type=Outcome, choices=list(Outcome), metavar="OUTCOME", help=", ".join(Outcome))
    parser.add_argument("--since", type=_moment, metavar="WHEN", help="7d for seven days ago, or a time as ISO 8601")
    parser.add_argument("--until", type=_moment, metavar="WHEN")
    parser.add_argument("--limit", type=int, default=1000, help="the newest so many (default: 1000; 0: all)")
    parser.add_argument("--json", action="store_true", help="one object a line")


def show(session: Session, options: argparse.Namespace, settings: Settings) -> str:
    """The rows that the options ask for, oldest first."""
    rows = [_shown(row) for row in reversed(find(session, options))]
    return "\n".join(map(json.dumps, rows)) if options.json else table(COLUMNS, rows)


def find(session: Session, options: argparse.Namespace) -> Sequence[Audit]:
    """Newest first."""
    query = select(Audit).order_by(Audit.at.desc(), Audit.id.desc())
    equal = {
        Audit.tenant: options.tenant,
        Audit.key_id: options.key,
        Audit.action: options.action,
        Audit.request_id: options.request,
        Audit.outcome: options.outcome,
    }
    for column, value in equal.items():
        if value is not None:
            query = query.where(column == value)
    if options.object is not None:
        of_it = Audit.object_id.startswith(f"{options.object}/", autoescape=True)
        query = query.where(or_(Audit.object_id == options.object, of_it))
    if options.since is not None:
        query = query.where(Audit.at >= _at(session, options.since))
    if options.until is not None:
        query = query.where(Audit.at < _at(session, options.until))
    return session.scalars(query.limit(options.limit) if options.limit > 0 else query).all()


def _moment(text: str) -> str | datetime:
    """A duration is checked here and counted back from the database's time."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        duration(text)
        return text
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _at(session: Session, when: str | datetime) -> datetime:
    return when if isinstance(when, datetime) else now(session) - duration(when)


def _shown(row: Audit) -> dict[str, str | None]:
    return {
        "at": shown_moment(row.at, "milliseconds"),
        **{column: getattr(row, column) for column in COLUMNS[1:]},
    }
