"""What the commands for operators share: the database that the settings name, durations, tables of text."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from models.database import Database
from models.settings import Settings

Command = Callable[[Session, argparse.Namespace, Settings], str]
Row = Mapping[str, str | None]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DURATION = re.compile(r"([0-9]{1,6})([smhdw])")


class Refused(Exception):
    """The command cannot be done; the message says why."""


def run(command: Command, options: argparse.Namespace, settings: Settings) -> int:
    """In one transaction. Returns the exit status. Standard output has the answer alone, standard error names the
    database."""
    shown = make_url(settings.database_url).render_as_string(hide_password=True)
    print(f"{options.command} of {shown}", file=sys.stderr)
    database = Database(settings.database_url)
    try:
        with database.transaction() as session:
            answer = command(session, options, settings)
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        return 2
    finally:
        database.close()
    if answer:
        print(answer)
    return 0


def actions_of(parser: argparse.ArgumentParser) -> Callable[[str, str, Command], argparse.ArgumentParser]:
    """Adds the actions of a command, one a call: its name, what it does, and the function that does it."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, text: str, act: Command) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
        added.set_defaults(act=act)
        return added

    return add


def duration(text: str) -> timedelta:
    """`90d`, `24h`, `30m`. For `argparse`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration: write 30m, 24h, 90d")
    if len(found[1]) > 5:
        raise argparse.ArgumentTypeError(f"{text!r} is too long: at most five digits")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Columns of text, as wide as they must be; `-` where there is nothing."""
    lines = [columns, *([row[column] or "-" for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def shown_moment(at: datetime | None, timespec: str = "seconds") -> str | None:
    return None if at is None else at.isoformat(timespec=timespec).replace("+00:00", "Z")
