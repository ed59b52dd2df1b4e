"""What confines the process that opens a person's file. Also the small program that starts that process.

The worker imports `start`; `start` runs this file, alone, as the guard: it takes the limits, starts the engine below
it, adopts every orphan the engine leaves, and ends them all when the engine ends, when it is told to (SIGHUP), or when
the worker dies. A guard of its own, and not code between fork and exec, because the worker has threads, and because a
worker killed with SIGKILL can clean nothing up itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import FrameType

LEVEL = "process"
"""What is applied, as workers report it: own session, empty environment, closed files, limits, no new privileges."""

KILL_ALL = signal.SIGHUP
"""Tells a guard to end the engine and everything that came of it, at once."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38


@dataclass(frozen=True)
class ProcessLimits:
    """Of each process: CPU seconds, bytes of the largest file, open files, and bytes of address space."""

    cpu_seconds: int
    file_bytes: int = 64 << 30
    open_files: int = 4096
    memory_bytes: int | None = None


def start(command: Sequence[str], environment: Mapping[str, str], limits: ProcessLimits) -> subprocess.Popen[bytes]:
    """Start `command` under a guard, which leads a session and process group of its own.

    The guard ends as the command ends: same exit status, or same signal. It also ends when the calling thread does, so
    call this from a thread that outlives the command. `environment` is all the environment there is.
    """
    config = json.dumps({"parent": os.getpid(), "limits": asdict(limits)})
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, config, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd="/",
        close_fds=True,
        start_new_session=True,
    )


class _EndAll(Exception):
    """SIGHUP came."""


def _guard(parent: int, limits: ProcessLimits, command: list[str]) -> int:
    """Run `command`, and leave nothing of it behind. Returns its wait status."""

    def end_all(number: int, frame: FrameType | None) -> None:
        raise _EndAll

    # The engine gets these from whoever stops the group; the guard must outlive it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = signal.SIGKILL.value
    try:
        signal.signal(KILL_ALL, end_all)
        _prctl(_PR_SET_PDEATHSIG, KILL_ALL)
        if os.getppid() != parent:
            return status
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        guard = os.getpid()
        engine = os.fork()
        if engine == 0:
            _become(command, guard, limits)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 1)  # the worker must see the end of the engine's output, not of ours
        os.dup2(nothing, 2)
        while True:
            pid, ending = os.wait()
            if pid == engine:
                status = ending
                break
    except _EndAll:
        pass
    signal.signal(KILL_ALL, signal.SIG_IGN)
    _end_children()
    return status


def _become(command: list[str], guard: int, limits: ProcessLimits) -> None:
    """In the fork: drop what the engine must not have, and turn into it. What the kernel enforces belongs here."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, KILL_ALL):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(125)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        # The soft CPU limit is a signal that names itself (SIGXCPU); the hard one, a little later, cannot be caught.
        _limit(resource.RLIMIT_CPU, limits.cpu_seconds, limits.cpu_seconds + 5)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_FSIZE, limits.file_bytes)
        _limit(resource.RLIMIT_NOFILE, limits.open_files)
        if limits.memory_bytes is not None:
            _limit(resource.RLIMIT_AS, limits.memory_bytes)
        os.execv(command[0], command)  # noqa: S606
    except BaseException as error:
        os.write(2, f"could not start the engine: {error!r}\n".encode())
    os._exit(126)


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    """Lower a limit; one that is lower already stays."""
    _, ceiling = resource.getrlimit(which)
    wanted = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, wanted = min(soft, ceiling), min(wanted, ceiling)
    resource.setrlimit(which, (soft, wanted))


def _end_children() -> None:
    """Kill until nothing is left: orphans of what is killed become our children, for the next round."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _children() -> Iterator[int]:
    me = os.getpid()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == me:
                    yield int(name)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _end_as(status: int) -> None:
    """End with the same wait status as the engine, so that the worker reads it off us."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    _config = json.loads(sys.argv[1])
    _end_as(_guard(_config["parent"], ProcessLimits(**_config["limits"]), sys.argv[2:]))
