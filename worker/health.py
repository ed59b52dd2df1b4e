"""`python -m worker.health control|device`: whether a worker of this kind lives on this host, as the database knows it.

A container asks it of the worker beside it. A worker that hangs has stopped saying that it lives.
"""

from __future__ import annotations

import argparse
import socket
import sys
from datetime import timedelta

from models import workers
from models.database import Database, now
from models.errors import Failure
from models.settings import Settings, settings
from worker.app import Kind, queue_for


def problem(settings: Settings, kind: Kind) -> str | None:
    """What is wrong, in words."""
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            recent = now(session) - timedelta(seconds=settings.scaled(settings.lease_seconds))
            here = socket.gethostname()
            for worker in workers.live(session, heard_since=recent):
                if worker.queue == queue_for(settings, kind) and worker.versions.get("host") == here:
                    return None
    except Failure as failure:
        return failure.message
    finally:
        database.close()
    return f"no {kind} worker has been heard of on {here}"


def main() -> str | None:
    parser = argparse.ArgumentParser(prog="python -m worker.health")
    parser.add_argument("kind", choices=["control", "device"])
    kind: Kind = parser.parse_args().kind
    return problem(settings(), kind)


if __name__ == "__main__":
    sys.exit(main())
