"""When each key was last used: noted in memory, written from time to time, so that no request waits for it."""

from __future__ import annotations

import asyncio
import logging
import threading
from datetime import datetime

from sqlalchemy import or_, update

from models.database import Database
from models.errors import Failure
from models.tables import Key

INTERVAL_SECONDS = 60.0
logger = logging.getLogger("modelpress.api")


class KeyUse:
    """One task in every api process. What a killed process had noted is lost: a minute at most."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._used: dict[str, datetime] = {}
        self._task: asyncio.Task[None] | None = None

    def note(self, key_id: str, at: datetime) -> None:
        with self._lock:
            self._used[key_id] = at

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            await asyncio.to_thread(self._try_to_write)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            await asyncio.to_thread(self._try_to_write)

    def write(self) -> None:
        """Write what was noted since the last time. A later time, of another process, stays.

        Raises `Failure` with `unavailable`; then nothing is forgotten."""
        with self._lock:
            used = dict(self._used)
        if not used:
            return
        with self._database.transaction() as session:
            for key_id, at in sorted(used.items()):  # in one order, so that two processes never wait for each other
                older = or_(Key.last_used_at.is_(None), Key.last_used_at < at)
                session.execute(update(Key).where(Key.id == key_id, older).values(last_used_at=at))
        with self._lock:
            for key_id, at in used.items():
                if self._used.get(key_id) == at:
                    del self._used[key_id]

    def _try_to_write(self) -> None:
        try:
            self.write()
        except Failure as failure:
            logger.warning("when keys were used is written later: %s", failure.message)
