"""What may come in the middle of a long step: the time for a checkpoint, the deadline of the job, the word to stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """SIGTERM came, and what there was to keep is kept."""


class Interrupts:
    """Of one run of the engine, counted from when this is made. Training asks between its batches.

    `checkpoint_seconds` lie between two states that are kept; from `deliver_seconds` on the best so far is wanted.
    """

    def __init__(self, checkpoint_seconds: float = math.inf, deliver_seconds: float = math.inf) -> None:
        self._began = self._kept = time.monotonic()
        self._checkpoint_seconds, self._deliver_seconds = checkpoint_seconds, deliver_seconds
        self._stopping = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block SIGTERM waits for the next state that is kept; outside it ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        if self._stopping:
            raise Stopped

    def state_due(self) -> bool:
        """Whether a state is to be kept now."""
        return self._stopping or self.out_of_time() or time.monotonic() - self._kept >= self._checkpoint_seconds

    def state_kept(self) -> None:
        """Say that one was. Raises `Stopped` when that was waited for."""
        self._kept = time.monotonic()
        if self._stopping:
            raise Stopped

    def out_of_time(self) -> bool:
        """Whether to improve no further and deliver what there is."""
        return time.monotonic() - self._began >= self._deliver_seconds

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
