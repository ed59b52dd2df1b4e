"""One database poller for everyone who waits in this process: a hundred watchers cost one query a turn.

A watcher looks at the database itself first, then waits here for the next change of what it looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from models.database import Database
from models.errors import Failure
from models.tables import Dataset, Event, Job, Network

logger = logging.getLogger("modelpress.watch")

POLL_SECONDS = 0.25
FEED_EVENTS = 1000
"""Newest events kept for each watched job; who is further behind reads the database."""
MAX_IDS_A_QUERY = 500

Version = tuple[object, ...]


@dataclass
class Feed:
    """What watchers of one object share while there are any."""

    watchers: int = 0
    turn: int = 0
    version: Version | None = None
    events: list[Event] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def after(self, event_id: int) -> list[Event] | None:
        """Events behind `event_id`, or `None` when the feed does not reach back so far."""
        if not self.events or self.events[0].id > event_id + 1:
            return None
        return [event for event in self.events if event.id > event_id]

    async def wait(self, turn: int, seconds: float) -> bool:
        """Until a change after `turn`, at most `seconds`; whether there was one.

        Take `turn` before looking at the database, so that no change falls in between.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.turn == turn:
                    await self.changed.wait()
                return True
        return False

    def announce(self, version: Version | None, events: Sequence[Event]) -> None:
        self.version = version
        self.events = [*self.events, *events][-FEED_EVENTS:]
        self.turn += 1
        self.changed.set()
        self.changed = asyncio.Event()


class Watch:
    """Polls while somebody waits. `closing` ends every wait early, so that the process can stop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._feeds: dict[str, Feed] = {}
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.closing = False
        self.queries = 0
        """How many times the database was asked; for tests and curiosity."""

    @property
    def watched(self) -> frozenset[str]:
        """The ids that somebody waits for."""
        return frozenset(self._feeds)

    @asynccontextmanager
    async def on(self, object_id: str) -> AsyncIterator[Feed]:
        """The feed of a job, network or data set, polled until the block ends."""
        feed = self._feeds.setdefault(object_id, Feed())
        feed.watchers += 1
        self._wanted.set()
        try:
            yield feed
        finally:
            feed.watchers -= 1
            if not feed.watchers:
                del self._feeds[object_id]

    def start(self) -> None:
        self._task = asyncio.create_task(self._poll())

    async def close(self) -> None:
        self.closing = True
        for feed in self._feeds.values():
            feed.announce(feed.version, ())
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _poll(self) -> None:
        while True:
            if not self._feeds:
                self._wanted.clear()
                await self._wanted.wait()
            known = {object_id: feed.version for object_id, feed in self._feeds.items()}
            try:
                versions, events = await run_in_threadpool(self._look, known)
            except Failure as failure:
                logger.warning("watchers wait on: %s", failure.message)
                await asyncio.sleep(10 * POLL_SECONDS)
                continue
            for object_id, version in versions.items():
                feed = self._feeds.get(object_id)
                if feed is not None and feed.version != version:
                    feed.announce(version, events.get(object_id, ()))
            await asyncio.sleep(POLL_SECONDS)

    def _look(self, known: dict[str, Version | None]) -> tuple[dict[str, Version | None], dict[str, list[Event]]]:
        self.queries += 1
        with self._database.read() as session:
            found: dict[str, Version] = {}
            for ids in _batches(known):
                found.update(_versions(session, ids))
            news = {
                object_id: version
                for object_id, version in found.items()
                if known[object_id] is not None and known[object_id] != version
            }
            events: dict[str, list[Event]] = {}
            for ids in _batches([object_id for object_id in news if object_id.startswith("job_")]):
                for event in _events(session, {job_id: known[job_id] for job_id in ids}):
                    events.setdefault(event.job_id, []).append(event)
        # An object that is gone has no version: its watchers look, and find that.
        return {object_id: found.get(object_id) for object_id in known}, events


def _batches(ids: Any) -> list[list[str]]:
    everything = list(ids)
    return [everything[start : start + MAX_IDS_A_QUERY] for start in range(0, len(everything), MAX_IDS_A_QUERY)]


def _versions(session: Session, ids: list[str]) -> dict[str, Version]:
    versions: dict[str, Version] = {}
    jobs = [object_id for object_id in ids if object_id.startswith("job_")]
    if jobs:
        found = select(Job.id, Job.event_count, Job.changed_at, Job.status).where(Job.id.in_(jobs))
        versions |= {job_id: tuple(version) for job_id, *version in session.execute(found)}
    for table, prefix in ((Network, "net_"), (Dataset, "dat_")):
        uploads = [object_id for object_id in ids if object_id.startswith(prefix)]
        if uploads:
            inspections = select(table.id, table.status, table.attempt).where(table.id.in_(uploads))
            versions |= {upload_id: tuple(version) for upload_id, *version in session.execute(inspections)}
    return versions


def _events(session: Session, versions: dict[str, Version | None]) -> Sequence[Event]:
    behind = [and_(Event.job_id == job_id, Event.id > version[0]) for job_id, version in versions.items() if version]
    return session.scalars(select(Event).where(or_(*behind)).order_by(Event.job_id, Event.id)).all()
