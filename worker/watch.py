"""Watching one engine to its end: relay what it says, end it when it must end, and say how it ended."""

from __future__ import annotations

import codecs
import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from models.errors import Code, Failure
from models.events import ENGINE_EVENT, EngineEvent, FailedEvent, FinishedEvent, InspectedEvent
from worker import sandbox
from worker.child import Child, Ending, LineTooLong

TICK_SECONDS = 0.1
LAST_WORDS = (FinishedEvent, FailedEvent, InspectedEvent)


class Stop(StrEnum):
    """Why a worker ends an engine that did nothing wrong."""

    CANCELLED = "cancelled"
    LOST = "lost"
    DRAINING = "draining"


@dataclass(frozen=True)
class Patience:
    """In seconds: for the whole run, for the silence between two events, and between asking to stop and killing."""

    run: float
    silence: float
    grace: float


@dataclass(frozen=True)
class Watched:
    """How it ended. At most one of these is set: `last`, the engine's last word; `stop`; `failure`."""

    ending: Ending
    last: FinishedEvent | FailedEvent | InspectedEvent | None = None
    stop: Stop | None = None
    failure: Failure | None = None


class _Ended(Exception):
    """The engine must end now."""

    def __init__(self, failure: Failure | None = None, stop: Stop | None = None) -> None:
        self.failure, self.stop = failure, stop


class Watch:
    """`on_event` and `on_log` hear everything, in order; a `Failure` that `on_event` raises ends the engine with it.

    `must_stop` is asked all the time, and `may_read` before reading: while it says no, the engine waits in its pipe.
    """

    def __init__(
        self,
        child: Child,
        patience: Patience,
        *,
        on_event: Callable[[EngineEvent], None],
        on_log: Callable[[str], None],
        must_stop: Callable[[], Stop | None],
        may_read: Callable[[], bool],
    ) -> None:
        self._child, self._patience = child, patience
        self._on_event, self._on_log = on_event, on_log
        self._must_stop, self._may_read = must_stop, may_read
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._last: FinishedEvent | FailedEvent | InspectedEvent | None = None
        self._silence, self._ticked = 0.0, time.monotonic()

    def run(self) -> Watched:
        """Returns when the engine, and everything it started, is gone."""
        memory = OutOfMemoryKills()
        deadline = time.monotonic() + self._patience.run
        failure: Failure | None = None
        stop: Stop | None = None
        try:
            self._until_end(deadline)
        except _Ended as ended:
            failure, stop = ended.failure, ended.stop
        if stop in (Stop.CANCELLED, Stop.DRAINING):
            self._ask_to_stop()
        ending = self._child.kill()
        if failure is None and stop is None and self._last is None:
            failure = crash(ending, out_of_memory=memory.happened())
        if failure is not None or stop is not None:
            return Watched(ending, stop=stop, failure=failure)
        return Watched(ending, last=self._last)

    def _until_end(self, deadline: float) -> None:
        while self._child.poll() is None:
            self._check(deadline)
            if self._may_read():
                self._hear(*self._read(TICK_SECONDS))
            else:
                time.sleep(TICK_SECONDS)
                self._silence = 0.0
        # All writers are gone, so the pipes end; unless the guard was killed and something escaped it.
        give_up = time.monotonic() + self._patience.grace
        while self._child.has_more() and time.monotonic() < give_up:
            self._hear(*self._read(TICK_SECONDS))

    def _check(self, deadline: float) -> None:
        now = time.monotonic()
        # A machine that was frozen for an hour did not listen for an hour.
        self._silence += min(now - self._ticked, 1.0)
        self._ticked = now
        stop = self._must_stop()
        if stop is not None and self._last is None:
            raise _Ended(stop=stop)
        if self._last is not None:
            if self._silence > self._patience.grace:
                raise _Ended  # it said its last word and will not go
        elif now > deadline:
            raise _Ended(Failure(Code.TIMEOUT, f"it did not end within {self._patience.run:g} seconds"))
        elif self._silence > self._patience.silence:
            raise _Ended(Failure(Code.STALLED, f"the engine said nothing for {self._patience.silence:g} seconds"))

    def _ask_to_stop(self) -> None:
        self._child.terminate()
        deadline = time.monotonic() + self._patience.grace
        with contextlib.suppress(_Ended):
            while (self._child.poll() is None or self._child.has_more()) and time.monotonic() < deadline:
                self._hear(*self._read(TICK_SECONDS))

    def _read(self, timeout: float) -> tuple[list[bytes], bytes]:
        try:
            return self._child.read(timeout)
        except LineTooLong:
            raise _Ended(Failure(Code.ENGINE_CRASHED, "the engine said a line that is too long")) from None

    def _hear(self, lines: list[bytes], log: bytes) -> None:
        if log:
            self._on_log(self._decoder.decode(log))
        for line in lines:
            if self._last is not None:
                raise _Ended(Failure(Code.ENGINE_CRASHED, "the engine went on after its last word"))
            try:
                event = ENGINE_EVENT.validate_json(line)
            except ValidationError as error:
                problem = "; ".join(item["msg"] for item in error.errors(include_input=False)[:3])
                raise _Ended(Failure(Code.ENGINE_CRASHED, f"the engine said what is no event: {problem}")) from None
            self._silence = 0.0
            if isinstance(event, LAST_WORDS):
                self._last = event
            else:
                try:
                    self._on_event(event)
                except Failure as failure:
                    raise _Ended(failure) from None


def crash(ending: Ending, *, out_of_memory: bool) -> Failure:
    """What it means that an engine ended without a last word."""
    peak = f"its peak memory was {ending.peak_memory_bytes >> 20} MiB"
    if ending.code >= 0:
        return Failure(Code.ENGINE_CRASHED, f"the engine ended with status {ending.code} and no last word; {peak}")
    name = signal.Signals(-ending.code).name
    if -ending.code == sandbox.MEMORY_ENDED:
        return Failure(Code.OUT_OF_MEMORY, f"the engine used more memory than it may; {peak}")
    if -ending.code == sandbox.DISK_ENDED:
        return Failure(Code.DISK_FULL, "the engine wrote more than it may, or the worker's disk is nearly full")
    if -ending.code == signal.SIGSYS:
        message = "the engine made a system call that no engine may make"
        return Failure(Code.ENGINE_CRASHED, message, retryable=False)
    if out_of_memory and -ending.code == signal.SIGKILL:
        return Failure(Code.OUT_OF_MEMORY, f"the system ended the engine for want of memory; {peak}", retryable=True)
    if -ending.code == signal.SIGXCPU:
        return Failure(Code.TIMEOUT, "the engine used up its processor time")
    return Failure(Code.ENGINE_CRASHED, f"the engine was ended by {name}; {peak}")


class OutOfMemoryKills:
    """Whether the kernel killed for want of memory since this was made: in our control group, or on the host."""

    def __init__(self) -> None:
        self._before = _kill_counts()

    def happened(self) -> bool:
        return any(count > self._before.get(path, count) for path, count in _kill_counts().items())


def _kill_counts() -> dict[str, int]:
    paths = [Path("/proc/vmstat")]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                paths.append(Path("/sys/fs/cgroup") / line[3:].lstrip("/") / "memory.events")
    counts: dict[str, int] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    counts[str(path)] = int(line.split()[1])
    return counts
