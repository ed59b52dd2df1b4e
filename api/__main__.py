"""`python -m api` serves. With `migrate` it only updates the database; with `create-key` it makes and prints a key."""

from __future__ import annotations

import argparse
import logging
import sys

from api.app import create_app
from api.auth import NotStarting, create_key, prepare_access
from api.server import Server
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


def make_key(chosen: Settings, tenant: str, name: str, read_only: bool) -> None:
    database = Database(chosen.database_url)
    try:
        with database.transaction() as session:
            secret = create_key(session, tenant, name, read_only=read_only)
    finally:
        database.close()
    print(secret)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("migrate", help="bring the database up to date, and end")
    key = commands.add_parser("create-key", help="make a key and print it; only its hash is stored")
    key.add_argument("--tenant", default=None)
    key.add_argument("--name", default="key")
    key.add_argument("--read-only", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    chosen = settings()
    migrate(chosen.database_url)
    if arguments.command == "create-key":
        make_key(chosen, arguments.tenant or chosen.tenant, arguments.name, arguments.read_only)
    elif arguments.command is None:
        serve(chosen)


if __name__ == "__main__":
    main()
