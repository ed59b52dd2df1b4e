"""A process of the embedded service: started, watched, started again when it dies, stopped without leaving anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

STEADY_SECONDS = 30.0
MAX_PAUSE_SECONDS = 10.0
MAX_LOG_BYTES = 16 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Process:
    """One program in a session of its own, with its output in `log`. `grace` is how long it may take to stop."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        is_ready: Callable[[], bool],
        grace: float,
    ) -> None:
        self.name, self.log, self.is_ready, self.grace = name, log, is_ready, grace
        self._command, self._environment = list(command), dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._failures = 0
        self._start_at: float | None = None

    def start(self) -> None:
        _rotate(self.log)
        self._started, self._start_at = time.monotonic(), None
        supervisor = os.getpid()

        def die_with_supervisor() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:
                os._exit(1)

        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor alone
                preexec_fn=die_with_supervisor,
            )

    def ended(self) -> int | None:
        """The exit status, when it is not running."""
        return None if self._process is None else self._process.poll()

    def keep_up(self) -> str | None:
        """Start it again once it died and its pause is over. Returns what happened, in words, if something did."""
        if self._start_at is not None:
            if time.monotonic() >= self._start_at:
                self.start()
                return f"{self.name} started again"
            return None
        status = self.ended()
        if status is None:
            return None
        self._end_group()
        self._failures = 1 if time.monotonic() - self._started > STEADY_SECONDS else self._failures + 1
        pause = min(MAX_PAUSE_SECONDS, 0.2 * 2 ** (self._failures - 1))
        self._start_at = time.monotonic() + pause
        return f"{self.name} ended with {status}; it starts again in {pause:.1f} s (see {self.log})"

    def ask_to_stop(self) -> None:
        self._start_at = None
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def wait_to_stop(self, must_hurry: Callable[[], bool]) -> None:
        """Give it its grace, then kill it and what is left of its process group."""
        if self._process is None:
            return
        deadline = time.monotonic() + self.grace
        while self._process.poll() is None and time.monotonic() < deadline and not must_hurry():
            time.sleep(0.02)
        self._end_group()
        self._process.wait()

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return ""

    def _end_group(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _rotate(log: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
