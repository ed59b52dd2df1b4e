"""One engine process seen from outside: its lines, its log, how to stop it, how it ended."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from models.events import MAX_LINE_BYTES
from worker import sandbox
from worker.sandbox import Sandbox

_CHUNK = 1 << 16


class LineTooLong(Exception):
    """A line had more than `MAX_LINE_BYTES`."""


@dataclass(frozen=True)
class Ending:
    """`code` is the exit status, or minus the signal. The peak is of the largest single process, in bytes."""

    code: int
    peak_memory_bytes: int


class Child:
    """An engine under its guard. Only the thread that made it may use it: the engine dies with that thread.

    Leaving the `with` block ends the engine and everything it started, whatever happened inside.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], confined: Sandbox) -> None:
        self._process: subprocess.Popen[bytes] = sandbox.start(command, environment, confined)
        self.pid = self._process.pid
        self.ending: Ending | None = None
        self._line = bytearray()
        self._selector = selectors.DefaultSelector()
        for stream, name in ((self._process.stdout, "stdout"), (self._process.stderr, "stderr")):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, name)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def read(self, timeout: float) -> tuple[list[bytes], bytes]:
        """Whole lines of stdout, and bytes of stderr, that came within `timeout` seconds. Raises `LineTooLong`."""
        lines: list[bytes] = []
        log = b""
        if not self.has_more():
            time.sleep(timeout if self.poll() is None else 0)
            return lines, log
        for key, _ in self._selector.select(timeout):
            try:
                data = os.read(key.fd, _CHUNK)
            except BlockingIOError:
                continue
            if not data:
                self._selector.unregister(key.fileobj)
            elif key.data == "stderr":
                log += data
            else:
                lines += self._split(data)
        return lines, log

    def has_more(self) -> bool:
        """Whether a pipe is still open: an engine that ended may have left something in it."""
        return bool(self._selector.get_map())

    def poll(self) -> Ending | None:
        """How it ended, or None while it runs."""
        if self.ending is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._process.returncode = code
                self.ending = Ending(code, usage.ru_maxrss * 1024)
        return self.ending

    def terminate(self) -> None:
        """Ask the whole process group to stop."""
        self._signal_group(signal.SIGTERM)

    def kill(self, patience: float = 5.0) -> Ending:
        """End it and all that came of it; returns when nothing is left. Should the guard hang, the group is killed."""
        deadline = time.monotonic() + patience
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sandbox.KILL_ALL)
        while (ending := self.poll()) is None:
            if time.monotonic() > deadline:
                self._signal_group(signal.SIGKILL)
            time.sleep(0.005)
        return ending

    def _signal_group(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _split(self, data: bytes) -> list[bytes]:
        first, *more = data.split(b"\n")
        self._line += first
        lines = []
        if more:
            lines = [bytes(self._line), *more[:-1]]
            self._line = bytearray(more[-1])
        if len(self._line) > MAX_LINE_BYTES or any(len(line) > MAX_LINE_BYTES for line in lines):
            raise LineTooLong
        return lines
