"""`python -m api` serves. `migrate` only updates the database; `keys`, `tenants` and `audit` are for operators."""

from __future__ import annotations

import argparse
import logging
import sys

from api import keys, operate, tenants, trail
from api.app import create_app
from api.auth import NotStarting, prepare_access
from api.server import Server
from models import logs
from models.database import Database, migrate
from models.settings import Settings, settings


def serve(chosen: Settings) -> None:
    database = Database(chosen.database_url)
    try:
        prepare_access(chosen, database)
    except NotStarting as refusal:
        sys.exit(str(refusal))
    finally:
        database.close()
    Server(create_app(chosen), chosen.host, chosen.port).run()


def parser() -> argparse.ArgumentParser:
    """A command for operators sets `act`, for `operate.run`."""
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("migrate", help="bring the database up to date, and end")
    keys.add_commands(commands.add_parser("keys", help="make, list, rotate and revoke keys"))
    tenants.add_commands(commands.add_parser("tenants", help="what each tenant has, and how much it may have"))
    audit = commands.add_parser("audit", help="who did what: the audit trail, oldest first")
    trail.add_options(audit)
    audit.set_defaults(act=trail.show)
    return parser


def main() -> None:
    arguments = parser().parse_args()
    chosen = settings()
    is_operators = hasattr(arguments, "act")
    logs.configure(chosen.log_format, logging.WARNING if is_operators else chosen.log_level.upper())
    migrate(chosen.database_url)
    if is_operators:
        sys.exit(operate.run(arguments.act, arguments, chosen))
    if arguments.command is None:
        serve(chosen)


if __name__ == "__main__":
    main()
