"""The worker's only writer while a job runs: every write carries the attempt, and none is lost to a database gap.

A thread of its own renews the lease, learns of a cancel, and writes what the engine said in batches. While the database
does not answer it keeps what it has and tries again; what it may keep is bounded, and then the engine has to wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from models import attempts
from models.database import Database, now
from models.errors import Code, Failure
from models.events import EngineEvent, ProgressEvent
from models.statuses import JobStatus

FLUSH_SECONDS = 0.25
RETRY_SECONDS = 1.0
MAX_KEPT = 2000
"""Events and log pieces kept while the database does not answer."""
MAX_LOG_CHARACTERS = 4 << 20
"""Of one attempt; what comes after is dropped, and the log says so."""

Write = Callable[[Session, datetime], bool]
_logger = logging.getLogger(__name__)


@dataclass
class _Kept:
    """What waits to be written, in order."""

    events: list[EngineEvent] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events) + len(self.log) + len(self.writes)

    def then(self, later: _Kept) -> _Kept:
        return _Kept(self.events + later.events, self.log + later.log, self.writes + later.writes)


class Journal:
    """Of one attempt at one job. `status` is what the last heartbeat said; `None` once the attempt holds it no more.

    `error` is set when it cannot go on, for a reason that waiting does not mend.
    """

    def __init__(self, database: Database, job_id: str, attempt: int, *, heartbeat: float, lease: float) -> None:
        self.status: JobStatus | None = JobStatus.RUNNING
        self.error: Exception | None = None
        self._database, self._job_id, self._attempt = database, job_id, attempt
        self._heartbeat, self._lease = heartbeat, timedelta(seconds=lease)
        self._kept = _Kept()
        self._log_characters = 0
        self._keeping = threading.Lock()
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._next_beat = time.monotonic() + heartbeat
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"journal {job_id}", daemon=True
        )

    def __enter__(self) -> Journal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    @property
    def is_full(self) -> bool:
        """Whether the engine has to wait until the database takes what is kept."""
        return len(self._kept) >= MAX_KEPT

    def record(self, event: EngineEvent) -> None:
        with self._keeping:
            # Of progress between two writes only the last is worth a row.
            events = self._kept.events
            if events and isinstance(event, ProgressEvent) and isinstance(events[-1], ProgressEvent):
                events.pop()
            events.append(event)

    def log(self, text: str) -> None:
        room = MAX_LOG_CHARACTERS - self._log_characters
        if room <= 0:
            return
        self._log_characters += len(text)
        if len(text) > room:
            text = text[:room] + "\n[the log went on; the rest is not kept]\n"
        with self._keeping:
            self._kept.log.append(text)

    def write(self, change: Write) -> None:
        """Have `change(session, now)` made soon. It returns False when this attempt holds the job no more."""
        with self._keeping:
            self._kept.writes.append(change)

    def settle(self, end: Write, give_up: Callable[[], bool]) -> bool | None:
        """Write all that is kept and make `end`, the last change of this attempt. True: it was made; False: it no
        longer could be. Tries until the database answers; `None`: `give_up` said so first."""
        if self.error is not None:
            with self._keeping:
                self._kept = _Kept()  # what is kept is what cannot be written
        while True:
            try:
                return self._commit(end)
            except Failure as failure:
                if failure.code is not Code.UNAVAILABLE:
                    raise
            if give_up():
                return None
            time.sleep(self._pause)

    @property
    def _pause(self) -> float:
        return min(RETRY_SECONDS, self._heartbeat)

    def _run(self) -> None:
        wait = min(FLUSH_SECONDS, self._heartbeat)
        while self.status is not None and not self._closing.wait(wait):
            try:
                due = time.monotonic() >= self._next_beat
                if due or self._kept:
                    self._commit(self._beat if due else None)
                wait = min(FLUSH_SECONDS, self._heartbeat)
            except Exception as error:
                if not (isinstance(error, Failure) and error.code is Code.UNAVAILABLE):
                    _logger.exception("job %s: the journal cannot write", self._job_id)
                    self.error = error
                    return
                _logger.warning("job %s: %s Trying again.", self._job_id, error.message)
                wait = self._pause

    def _commit(self, last: Write | None) -> bool:
        """What is kept, then `last`, in one transaction; what could not be written stays kept."""
        with self._writing:
            with self._keeping:
                taken, self._kept = self._kept, _Kept()
            try:
                with self._database.transaction() as session:
                    held = self._append(session, taken)
                    done = held and (last is None or last(session, now(session)))
            except BaseException:
                with self._keeping:
                    self._kept = taken.then(self._kept)
                raise
            if not held:
                self.status = None
            return done

    def _append(self, session: Session, taken: _Kept) -> bool:
        held = True
        if taken.events:
            held = attempts.record(session, self._job_id, self._attempt, taken.events, now(session))
        if taken.log and held:
            held = attempts.append_log(session, self._job_id, self._attempt, "".join(taken.log))
        for write in taken.writes:
            held = held and write(session, now(session))
        return held

    def _beat(self, session: Session, moment: datetime) -> bool:
        started = time.monotonic()
        self.status = attempts.beat(session, self._job_id, self._attempt, moment + self._lease, moment)
        self._next_beat = started + self._heartbeat
        return self.status is not None
