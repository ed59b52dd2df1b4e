"""`python -m tests.promises.publisher FOLDER DATABASE_URL`: publishes files and rows for ever, life after life."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from models import inspections
from models.blobs import FolderBlobs
from models.database import Database, now
from models.tables import Network

_PR_SET_PDEATHSIG = 1


def publish_on(folder: Path, url: str) -> None:
    blobs, database = FolderBlobs(folder, keep_free_bytes=0), Database(url)
    with database.read() as session:
        now(session)
    print(f"life {os.getpid()}", flush=True)
    while True:
        with blobs.writer() as writer:
            for _ in range(8):
                writer.write(os.urandom(1 << 16))
            blob = writer.publish()
        with database.transaction() as session:
            inspections.add_upload(session, Network, tenant="publisher", name="n", blob=blob, now=now(session))
        print("published", flush=True)


def main() -> None:
    folder, url = Path(sys.argv[1]), sys.argv[2]
    while True:
        life = os.fork()
        if life == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            publish_on(folder, url)
        os.waitpid(life, 0)


if __name__ == "__main__":
    main()
