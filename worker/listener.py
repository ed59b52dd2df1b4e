"""Answers what the filter of `seccomp.py` leaves to the guard: new processes and threads, and whom a call is aimed at.

A count that no user, control group or namespace of its own is needed for: each call waits until it is answered
(seccomp_unotify(2)). Only register arguments are judged, so nothing can change between the look and the call.
"""

from __future__ import annotations

import errno
import fcntl
import struct
import time

from worker import seccomp
from worker.confine import Plan
from worker.household import Household

_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTICE = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_COUNT_SECONDS = 0.05
_TO_BEGIN_SECONDS = 0.1
"""After it was let through, a process or thread is there to be counted; a busy machine takes its time."""


class Listener:
    """Of one household. What it lets through is counted until the next look at what really is there."""

    def __init__(self, descriptor: int, household: Household, plan: Plan) -> None:
        self.descriptor = descriptor
        self._household, self._plan = household, plan
        self._processes = self._tasks = 1
        self._counted = self._allowed = 0.0

    def answer(self) -> None:
        """Take one call that waits, and let it through or refuse it."""
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, notice)
            identity, _, _, number, _, _, first, *_ = _NOTICE.unpack(notice)
            refusal = self._refusal(number, first)
            answer = _ANSWER.pack(identity, 0, -refusal, 0 if refusal else _CONTINUE)
            fcntl.ioctl(self.descriptor, _SEND, answer)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):  # it was killed, or got a signal, and asks again
                raise

    def _refusal(self, number: int, first: int) -> int:
        if number in (seccomp.KILL, seccomp.TGKILL, seccomp.SCHED_SETAFFINITY):
            return 0 if self._household.has(first & 0xFFFFFFFF) else errno.EPERM
        is_thread = number == seccomp.CLONE and bool(first & seccomp.CLONE_THREAD)
        if self._is_full(is_thread) and time.monotonic() - self._counted > _COUNT_SECONDS:
            time.sleep(max(0.0, self._allowed + _TO_BEGIN_SECONDS - time.monotonic()))
            members = self._household.members()
            self._processes, self._tasks = len(members), sum(members.values())
            self._counted = time.monotonic()
        if self._is_full(is_thread):
            return errno.EAGAIN
        self._allowed = time.monotonic()
        self._tasks += 1
        if not is_thread:
            self._processes += 1
            self._household.expect_another()
        return 0

    def _is_full(self, is_thread: bool) -> bool:
        return self._tasks >= self._plan.tasks or (not is_thread and self._processes >= self._plan.processes)
