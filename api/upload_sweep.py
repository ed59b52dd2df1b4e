"""Expires resumable uploads from time to time, where their files are: beside the api."""

from __future__ import annotations

import asyncio
import logging

from models import uploads
from models.database import Database
from models.errors import Failure
from models.incoming import Incoming
from models.settings import Settings

INTERVAL_SECONDS = 600.0
logger = logging.getLogger("modelpress.api")


class UploadSweep:
    """One task in every api process; what two of them do at once is done once."""

    def __init__(self, settings: Settings, database: Database, incoming: Incoming) -> None:
        self._database, self._incoming = database, incoming
        self._interval = min(INTERVAL_SECONDS, settings.upload_expiry_seconds / 4)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while True:
            try:
                removed = await asyncio.to_thread(uploads.sweep, self._database, self._incoming)
                if removed:
                    logger.info("%d uploads that nobody finished or used were removed", removed)
            except (Failure, OSError) as error:
                logger.warning("expired uploads stay until the next look: %s", error)
            await asyncio.sleep(self._interval)
