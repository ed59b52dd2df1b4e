"""All processes below a guard, seen from outside: how many, how much memory and disk they use, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

KILL_ALL = signal.SIGHUP
"""Tells a guard to end the engine and everything that came of it, at once."""

MEMORY_ENDED, DISK_ENDED = signal.SIGUSR1.value, signal.SIGUSR2.value
"""The signals a guard ends with when it ended the engine for want of memory or of disk."""

MAX_FILES = 200_000
"""In the folders of one run."""
_NEAR_FULL_BYTES, _NEAR_FULL_SHARE = 256 << 20, 100
_DISK_SECONDS, _TO_BEGIN_SECONDS = 1.0, 1.0


@dataclass(frozen=True)
class _Process:
    parent: int
    threads: int


class Household:
    """Of the process that makes it."""

    def __init__(self) -> None:
        self._root = os.getpid()
        self._members: dict[int, int] = {}
        self._stale_until = 0.0
        self._looked = self._look_after = 0.0

    def expect_another(self) -> None:
        """A process is about to begin."""
        self._stale_until = time.monotonic() + _TO_BEGIN_SECONDS

    def members(self) -> dict[int, int]:
        """Each process below, and how many threads it has; one that ended and was not waited for counts as one."""
        everything = dict(_processes())
        found: dict[int, int] = {}
        below = {self._root}
        while below:
            below = {pid for pid, process in everything.items() if process.parent in below and pid not in found}
            found |= {pid: max(1, everything[pid].threads) for pid in below}
        self._members = found
        return found

    def has(self, number: int) -> bool:
        """Whether this is a process below, or a thread of one."""
        with contextlib.suppress(OSError), open(f"/proc/{number}/status", "rb") as file:
            (group,) = (int(line.split()[1]) for line in file if line.startswith(b"Tgid:"))
            return group in self.members()
        return False

    def memory_bytes(self) -> int:
        """Of their own, not of files."""
        if not self._members or time.monotonic() < self._stale_until:
            self.members()
        return sum(memory_of(pid) for pid in self._members)

    def is_over_disk(self, folders: Sequence[str], limit: int) -> bool:
        """Whether the folders hold more than `limit`, or more than `MAX_FILES`, or have nearly filled their disk.

        Looked up now and then, less often the longer it takes.
        """
        began = time.monotonic()
        if began - self._looked < self._look_after:
            return False
        over = any(_nearly_full(folder) for folder in folders)
        total = files = 0
        for size in (size for folder in folders for size in _sizes(folder)):
            total, files = total + size, files + 1
            if total > limit or files > MAX_FILES:
                over = True
                break
        self._looked = time.monotonic()
        self._look_after = max(_DISK_SECONDS, 20 * (self._looked - began))
        return over

    def end(self) -> None:
        """Kill until nothing is left: orphans of what is killed become our children, for the next round."""
        while True:
            for pid, process in _processes():
                if process.parent == self._root:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            try:
                os.wait()
            except ChildProcessError:
                return


def _processes() -> Iterator[tuple[int, _Process]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                yield int(name), _Process(int(fields[1]), int(fields[17]))


def memory_of(pid: int) -> int:
    """Resident bytes that no file backs, and swapped ones."""
    total = 0
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith((b"RssAnon:", b"RssShmem:", b"VmSwap:")):
                total += int(line.split()[1]) << 10
    return total


def _sizes(folder: str) -> Iterator[int]:
    """Bytes on disk of every entry below; links are not followed."""
    left = [folder]
    while left:
        with contextlib.suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    yield entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)


def _nearly_full(folder: str) -> bool:
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize < min(_NEAR_FULL_BYTES, disk.f_blocks * disk.f_frsize // _NEAR_FULL_SHARE)
