"""`python -m api` serves. With `migrate` it only updates the database; `keys` makes, lists and revokes keys."""

from __future__ import annotations

import argparse
import logging
import sys

from api import keys
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("migrate", help="bring the database up to date, and end")
    keys.add_commands(commands.add_parser("keys", help="make, list and revoke keys"))
    arguments = parser.parse_args()
    chosen = settings()
    logs.configure(chosen.log_format, logging.WARNING if arguments.command == "keys" else logging.INFO)
    migrate(chosen.database_url)
    if arguments.command == "keys":
        sys.exit(keys.run(arguments, chosen))
    if arguments.command is None:
        serve(chosen)


if __name__ == "__main__":
    main()
