"""What a reader may not do, noticed by Python's own audit events, and how much memory and time it may take.

https://docs.python.org/3/library/audit_events.html
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MORE_BYTES = 3 << 30
"""What reading one file may allocate beside what the process has before."""
CPU_SECONDS = 20
_NEVER = (
    *("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.system"),
    *("pty.", "ctypes.dlopen", "pickle.find_class", "urllib.", "http.", "ftplib.", "smtplib."),
)
_CHANGES = {
    **dict.fromkeys(("os.chmod", "os.chown", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime"), 1),
    **dict.fromkeys(("os.link", "os.rename", "os.symlink"), 2),
}
"""With how many of what they are given, from the first on, are paths."""
_GENERATED = "<eval_with_key>"
"""What torch.fx calls the source it writes for a graph."""


class Guard:
    """`seen` has what was done against the rules since it was last emptied. Files lie in `folder`, and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[str] = []
        self._watches = False
        self._writable = (str(folder), "/dev/null")
        roots = (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *filter(None, sys.path))
        self._code = (*roots, str(Path(__file__).parents[2]))
        self._readable = (*self._writable, *self._code, "/proc", "/sys", "/dev")
        self._known = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names
        sys.addaudithook(self._notice)  # for good: a process that has one cannot be rid of it

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """A process that computes longer than `CPU_SECONDS` in here is ended by SIGPROF."""
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        self._watches = True
        try:
            yield
        finally:
            self._watches = False
            signal.setitimer(signal.ITIMER_PROF, 0)

    def _notice(self, event: str, given: tuple[Any, ...]) -> None:
        if self._watches and (problem := self._problem(event, given)) is not None:
            self.seen.append(problem)

    def _problem(self, event: str, given: tuple[Any, ...]) -> str | None:
        if event.startswith(_NEVER):
            return f"{event} {given!r}"[:300]
        if event in _CHANGES:
            paths = given[: _CHANGES[event]]
            return None if all(_inside(path, self._writable) for path in paths) else f"{event} {paths!r}"
        if event == "open":
            path, mode, flags = given
            writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
            return None if _inside(path, self._writable if writes else self._readable) else f"open {path!r} {mode}"
        if event == "import":
            return None if given[0].partition(".")[0] in self._known else f"import {given[0]}"
        if event == "exec":
            name = getattr(given[0], "co_filename", "")
            return None if name.startswith(_GENERATED) or _inside(name, self._code) else f"exec {name}"
        return None


def _inside(path: object, roots: tuple[str, ...]) -> bool:
    if isinstance(path, int):
        return True
    name = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
    return any(name == root or name.startswith(root + os.sep) for root in roots)


def limit_memory() -> None:
    """By RLIMIT_AS: what is mapped counts, also where it is never touched. Beyond it the system refuses."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
