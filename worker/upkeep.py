"""What a control worker does once an hour: rows that are too old go, then bytes that nobody needs."""

from __future__ import annotations

import logging
import threading
import time
from datetime import timedelta

from models import collection, retention
from models.blobs import Blobs
from models.database import Database
from models.errors import Code, Failure
from models.settings import Settings

ABANDONED_SECONDS = 86400.0
"""Bytes on their way whose writer wrote nothing for so long have no writer any more."""
_logger = logging.getLogger(__name__)


class Upkeep:
    """In a thread of its own, so that looking through a large store delays no sweep. It may die at any point."""

    def __init__(self, database: Database, blobs: Blobs, settings: Settings) -> None:
        self._database, self._blobs, self._settings = database, blobs, settings
        self._pause = settings.scaled(settings.upkeep_seconds)
        self._next = 0.0
        self._thread: threading.Thread | None = None

    def start_if_due(self) -> None:
        """Not for use by several threads at once."""
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = time.monotonic() + self._pause
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            expired = retention.expire(self._database, self._settings)
            cleaned = self._blobs.clean(older_than_seconds=ABANDONED_SECONDS)
            grace = timedelta(seconds=self._settings.collect_grace_seconds)
            collected = collection.collect(self._database, self._blobs, grace=grace)
        except Failure as failure:
            if failure.code is not Code.UNAVAILABLE:
                raise
            _logger.warning("upkeep: %s The next round goes on.", failure.message)
            return
        if any((*expired, cleaned, *collected)):
            _logger.info("upkeep: %s, %s, %d files of dead writers", expired, collected, cleaned)
