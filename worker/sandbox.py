"""What confines the process that opens a person's file, as the worker asks for it; `guard.py` is what enforces it.

No sockets, no file but those of its profile, no process of others, no capability, no more than its limits. Kernels:
Landlock from Linux 5.13 on; ABI 4 (6.7) adds rules for ports, ABI 6 (6.12) for signals. What those add is kept on older
kernels too, by the filter for system calls and by the guard.
"""

from __future__ import annotations

import functools
import glob
import json
import logging
import os
import platform
import secrets
import signal
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import models
from worker import guard, household, landlock, seccomp
from worker.confine import Plan
from worker.profiles import COMPILERS_OWN, DDP, LOADER, PROGRAM_FOLDERS, Profile

_logger = logging.getLogger(__name__)

KILL_ALL, MEMORY_ENDED, DISK_ENDED = household.KILL_ALL, household.MEMORY_ENDED, household.DISK_ENDED

ADDRESS_SPACE_BYTES = 16 << 30
"""What an engine may reserve beyond its memory: libraries, arenas and stacks, most of it never touched."""

_TRIAL_SECONDS = 30.0
_FIRST_UID, _UIDS = 1 << 30, 1 << 29
_CAPABILITIES_TO_CHANGE_USER = (0, 1, 5, 6, 7)
"""CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID."""


class CannotConfine(Exception):
    """This machine cannot confine an engine as it should; the message says why, and what to do.

    `is_partial`: what it can do, it does.
    """

    def __init__(self, message: str, *, is_partial: bool = False) -> None:
        super().__init__(message)
        self.is_partial = is_partial


@dataclass(frozen=True)
class Limits:
    """CPU seconds and open files are of each process, memory and disk bytes of all together. `tasks` counts threads."""

    cpu_seconds: int
    memory_bytes: int | None = None
    disk_bytes: int = 64 << 30
    tasks: int = 256
    open_files: int = 4096


@dataclass(frozen=True)
class Sandbox:
    """One engine's: `root` is its run folder, of which it may read everything and write only to `writable`.

    An engine that root starts runs as a user of its own where everything it needs is reachable by one; `root` then
    belongs to that user. Otherwise it keeps the worker's user, without any capability.
    `landlock_abi` is the newest to use, to see what an older kernel would do. `shares_network`: what a profile with a
    network uses is the machine's own, for want of another.
    """

    profile: Profile
    root: Path
    writable: tuple[Path, ...]
    limits: Limits
    landlock_abi: int = landlock.NEWEST_ABI
    shares_network: bool = False


def start(command: Sequence[str], environment: Mapping[str, str], sandbox: Sandbox) -> subprocess.Popen[bytes]:
    """Start `command` under a guard, which leads a session and process group of its own.

    The guard ends as the command ends: same exit status, or same signal; or with `MEMORY_ENDED` or `DISK_ENDED`. It
    also ends when the calling thread does, so call this from a thread that outlives the command. `environment` is all
    the environment there is. What this machine cannot enforce is not enforced: ask `problem` first.
    """
    given = json.dumps({"parent": os.getpid(), "plan": asdict(_plan(command, sandbox))})
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, given, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd="/",
        close_fds=True,
        start_new_session=True,
    )


def level(*, shares_network: bool = False) -> str:
    """What is enforced on this machine, as workers report it. `shares_network`: where engines cannot have a network of
    their own, those that train in several processes are given the machine's."""
    abi = landlock.abi()
    parts = [f"landlock abi {abi}" if abi else "no landlock", "seccomp" if seccomp.is_available() else "no seccomp"]
    network = ["own networks"] if has_networks() else ["shared network"] if shares_network else []
    return " + ".join([*parts, "limits", "no capabilities", *network])


def check() -> None:
    """Start something confined, and see that it really is. Raises `CannotConfine`."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CannotConfine("Workers run on Linux x86-64 only. Elsewhere use `docker compose up`.")
    missing = []
    if not landlock.abi():
        missing.append("no Landlock (Linux 5.13 or newer, with `landlock` among its security modules)")
    if not seccomp.is_available():
        missing.append("no seccomp filters with notification (Linux 5.5 or newer)")
    problem = _trial()
    if missing or problem is not None:
        raise CannotConfine(
            f"Uploads cannot be opened safely on this machine: {problem or ' and '.join(missing)}. Use a newer kernel, "
            "or a container runtime that lets these calls through; or, where you trust every upload, "
            "--allow-weak-sandbox (MODELPRESS_ALLOW_WEAK_SANDBOX=true).",
            is_partial=problem is None,
        )


def has_networks() -> bool:
    """Whether engines can have a network of their own here. Once they could, they can; else it is tried again."""
    try:
        _try_network()
    except CannotConfine as problem:
        _logger.info("engines cannot have a network of their own: %s", problem)
        return False
    return True


@functools.cache
def _try_network() -> None:
    if (problem := _trial(DDP)) is not None:
        raise CannotConfine(problem)


def _trial(profile: Profile = LOADER) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(profile, Path(folder), (Path(folder),), Limits(cpu_seconds=10))
        process = start([sys.executable, "-I", "-S", "-c", "print('confined')"], {}, sandbox)
        try:
            output, errors = process.communicate(timeout=_TRIAL_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return f"a trial had not ended after {_TRIAL_SECONDS:g} seconds"
    if process.returncode == 0 and output == b"confined\n":
        return None
    return errors.decode(errors="replace").strip() or f"a trial ended with {process.returncode}"


def _plan(command: Sequence[str], sandbox: Sandbox) -> Plan:
    limits, profile = sandbox.limits, sandbox.profile
    named = [part for part in command[1:] if os.path.isabs(part) and os.path.exists(part)]
    named = [part for part in named if not Path(part).is_relative_to(sandbox.root)]
    readable = [*_libraries(), *named, str(sandbox.root)]
    uid = _other_user([*_libraries(), *named, command[0]], sandbox)
    if uid is not None:
        _give(sandbox.root, uid)
    rules = [
        *((landlock.READ, path) for path in _present([*_matching(profile.readable), *readable])),
        *((landlock.WRITE, path) for path in _present([*profile.writable, *map(str, sandbox.writable)])),
        *((landlock.CONTROL, path) for path in _matching(profile.devices)),
        *((landlock.RUN, path) for path in _programs(command[0], profile)),
    ]
    memory = limits.memory_bytes
    return Plan(
        rules=rules,
        processes=profile.processes,
        tasks=limits.tasks,
        cpu_seconds=limits.cpu_seconds,
        open_files=limits.open_files,
        address_bytes=None if memory is None or profile.devices else memory + ADDRESS_SPACE_BYTES,
        memory_bytes=memory,
        disk_bytes=limits.disk_bytes,
        folders=[str(folder) for folder in sandbox.writable],
        uid=uid,
        landlock_abi=min(landlock.abi(), sandbox.landlock_abi),
        seccomp=seccomp.is_available(),
        network=profile.network,
        shares_network=sandbox.shares_network,
    )


@functools.cache
def _libraries() -> tuple[str, ...]:
    """Python's and ours. Not the whole of the interpreter's folder, nor of the source's: both may hold other things."""
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    folders += [path for path in sorted(mapped) if os.path.basename(path).startswith("libpython")]
    folders.append(os.path.join(sys.prefix, "pyvenv.cfg"))
    folders += [os.path.dirname(os.path.abspath(module.__file__ or "")) for module in (models, sys.modules[__name__])]
    return tuple(dict.fromkeys(_present(folders)))


def _programs(interpreter: str, profile: Profile) -> Iterator[str]:
    yield interpreter
    yield from _present(["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"])
    for name in profile.programs:
        yield from _present(os.path.join(folder, name) for folder in PROGRAM_FOLDERS)
        yield from _matching(f"{folder}/{name}" for folder in COMPILERS_OWN)


def _matching(patterns: Iterable[str]) -> Iterator[str]:
    return (path for pattern in patterns for path in glob.glob(pattern))


def _present(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if os.path.exists(path)]


def _other_user(needed: Sequence[str], sandbox: Sandbox) -> int | None:
    """A user id that nobody has, if an engine can run with it."""
    if os.geteuid() != 0 or not _may_change_user():
        return None
    uid = _FIRST_UID + secrets.randbelow(_UIDS)
    if not _is_mapped(uid):
        return None
    way = [parent for path in (*needed, str(sandbox.root)) for parent in _parents(path)]
    if all(os.stat(folder).st_mode & stat.S_IXOTH for folder in set(way)) and all(map(_is_readable, needed)):
        return uid
    return None


def _parents(path: str) -> Iterator[Path]:
    """Of a path as it is written and as it is resolved."""
    yield from Path(path).parents
    yield from Path(path).resolve().parents


def _is_readable(path: str) -> bool:
    mode = os.stat(path).st_mode
    needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    return mode & needed == needed


def _may_change_user() -> bool:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    have = int(line.split()[1], 16)
    return all(have >> number & 1 for number in _CAPABILITIES_TO_CHANGE_USER)


def _is_mapped(uid: int) -> bool:
    """Whether this user namespace knows the id, as a user and as a group."""
    for kind in ("uid_map", "gid_map"):
        ranges = [line.split() for line in Path(f"/proc/self/{kind}").read_text().splitlines()]
        if not any(int(first) <= uid < int(first) + int(count) for first, _, count in ranges):
            return False
    return True


def _give(root: Path, uid: int) -> None:
    os.chown(root, uid, uid)
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            os.chown(os.path.join(folder, name), uid, uid, follow_symlinks=False)
