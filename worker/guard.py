"""The program above each engine: `python -I -S guard.py PLAN COMMAND…`, started by `sandbox.start`.

It confines the engine and starts it, lets it have only so many processes, threads, bytes of memory and of disk, adopts
every orphan it leaves, and ends them all when the engine ends, when it is told to (SIGHUP), or when the worker dies.
A process of its own, and not code between fork and exec, because the worker has threads, and because a worker killed
with SIGKILL can clean nothing up itself.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # isolated: only the standard library is there yet

from worker.confine import Plan, confine, prctl
from worker.household import DISK_ENDED, KILL_ALL, MEMORY_ENDED, Household
from worker.listener import Listener

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_TICK_SECONDS = 0.1


class _EndAll(Exception):
    """SIGHUP came."""


def guard(parent: int, plan: Plan, command: list[str]) -> int:
    """Run `command`, and leave nothing of it behind. Returns its wait status."""

    def end_all(number: int, frame: FrameType | None) -> None:
        raise _EndAll

    # The engine gets these from whoever stops the group; the guard must outlive it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = signal.SIGKILL.value
    household = Household()
    try:
        signal.signal(KILL_ALL, end_all)
        prctl(_PR_SET_PDEATHSIG, KILL_ALL)
        if os.getppid() != parent:
            return status
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        ended = _wake_when_a_child_ends()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        me = os.getpid()
        engine = os.fork()
        if engine == 0:
            _become(command, me, plan, theirs)
        theirs.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 1)  # the worker must see the end of the engine's output, not of ours
        os.dup2(nothing, 2)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        listener = Listener(descriptors[0], household, plan) if descriptors else None
        status = _watch(engine, ended, listener, household, plan)
    except _EndAll:
        pass
    signal.signal(KILL_ALL, signal.SIG_IGN)
    household.end()
    return status


def _become(command: list[str], guard: int, plan: Plan, channel: socket.socket) -> None:
    """In the fork: drop what the engine must not have, and turn into it."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, KILL_ALL):
            signal.signal(number, signal.SIG_DFL)
        confine(plan, guard, channel)
        os.execv(command[0], command)  # noqa: S606
    except BaseException as error:
        os.write(2, f"could not start the engine: {error!r}\n".encode())
    os._exit(126)


def _wake_when_a_child_ends() -> int:
    """A descriptor that becomes readable then."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return reading


def _watch(engine: int, ended: int, listener: Listener | None, household: Household, plan: Plan) -> int:
    """Until the engine ends, or must: its wait status, or the signal that says what it had too much of."""
    poller = select.poll()
    poller.register(ended, select.POLLIN)
    if listener is not None:
        poller.register(listener.descriptor, select.POLLIN)
    while True:
        for descriptor, event in poller.poll(_TICK_SECONDS * 1000):
            if descriptor == ended:
                os.read(ended, 1024)
            elif listener is not None and event & select.POLLIN:
                listener.answer()
            else:
                poller.unregister(descriptor)  # nobody is left who could ask
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == engine:
                return status
            if pid == 0:
                break
        if plan.memory_bytes is not None and household.memory_bytes() > plan.memory_bytes:
            return MEMORY_ENDED
        if household.is_over_disk(plan.folders, plan.disk_bytes):
            return DISK_ENDED


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
    _given = json.loads(sys.argv[1])
    _end_as(guard(_given["parent"], Plan(**_given["plan"]), sys.argv[2:]))
