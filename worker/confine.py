"""What the guard does to the process that becomes an engine, in order; after the last step nothing can be undone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

from worker import landlock, seccomp
from worker.network import leave_network, leave_network_as_user

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 1, 4, 24, 28
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_NO_ROOT_LOCKED = 0b101111
"""Every secure bit, locked, but keeping capabilities over a change of user: root is a user like any other."""
_SYS_CAPSET, _CAPABILITY_VERSION_3 = 126, 0x20080522


@dataclass(frozen=True)
class Plan:
    """Everything about one engine, as the worker decided it. Byte and second limits are of each process; but `memory`
    and `disk` are what the guard measures over all of them. `uid` is another user for the engine, if it gets one.
    `network`: it may use TCP, in a network of its own unless `shares_network`.
    """

    rules: list[tuple[int, str]]
    processes: int
    tasks: int
    cpu_seconds: int
    open_files: int
    address_bytes: int | None
    memory_bytes: int | None
    disk_bytes: int
    folders: list[str]
    uid: int | None
    landlock_abi: int
    seccomp: bool
    network: bool
    shares_network: bool


def confine(plan: Plan, guard: int, channel: socket.socket) -> None:
    """Of the calling process, a fork of `guard`; the descriptor to listen on goes through `channel`.

    Raises OSError where the kernel refuses, and ProcessLookupError when the guard is gone.
    """
    with contextlib.suppress(OSError):  # where memory runs out, the engine goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    # The soft CPU limit is a signal that names itself (SIGXCPU); the hard one, a little later, cannot be caught.
    _limit(resource.RLIMIT_CPU, plan.cpu_seconds, plan.cpu_seconds + 5)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, plan.disk_bytes)
    _limit(resource.RLIMIT_NOFILE, plan.open_files)
    _limit(resource.RLIMIT_MEMLOCK, 0)
    _limit(resource.RLIMIT_MSGQUEUE, 0)
    if plan.address_bytes is not None:
        _limit(resource.RLIMIT_AS, plan.address_bytes)
    apart = plan.network and not plan.shares_network
    to_leave = apart and not leave_network()
    _drop_bounding_set()
    if plan.uid is not None:
        _limit(resource.RLIMIT_NPROC, plan.tasks)
        os.setgroups([])
        os.setresgid(plan.uid, plan.uid, plan.uid)
        os.setresuid(plan.uid, plan.uid, plan.uid)
    if to_leave:
        prctl(_PR_SET_DUMPABLE, 1)  # of who changed the user, the system keeps /proc/self to itself
        leave_network_as_user()
        _drop_bounding_set()
    _drop_capabilities()
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # changing the user would have undone it
    if os.getppid() != guard:
        raise ProcessLookupError("the guard is gone")
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if plan.landlock_abi:
        landlock.apply(plan.rules, plan.landlock_abi, ports=plan.network)
    if plan.seccomp:
        ask = plan.landlock_abi < landlock.SIGNALS_ABI
        listener = seccomp.apply(seccomp.program(ask_about_signals=ask, network=plan.network))
        socket.send_fds(channel, [b"\0"], [listener])
        os.close(listener)


def prctl(option: int, *values: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, *values, *(0,) * (4 - len(values))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _limit(which: int, soft: int, hard: int | None = None) -> None:
    """Lower a limit; one that is lower already stays."""
    _, ceiling = resource.getrlimit(which)
    wanted = soft if hard is None else hard
    if ceiling != resource.RLIM_INFINITY:
        soft, wanted = min(soft, ceiling), min(wanted, ceiling)
    resource.setrlimit(which, (soft, wanted))


def _drop_bounding_set() -> None:
    """No program can give them back. Takes CAP_SETPCAP; who lacks it has no capability worth dropping, or cannot."""
    with contextlib.suppress(PermissionError):
        for number in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
            prctl(_PR_CAPBSET_DROP, number)
        prctl(_PR_SET_SECUREBITS, _NO_ROOT_LOCKED)


def _drop_capabilities() -> None:
    """Effective, permitted, inheritable, ambient: none."""
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if ctypes.CDLL(None, use_errno=True).syscall(_SYS_CAPSET, ctypes.byref(header), (ctypes.c_uint32 * 6)()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")
