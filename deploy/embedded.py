"""`python -m deploy.embedded`: the whole service on this machine, under one supervisor, from one folder.

Broker, control worker with beat, device worker and api are processes of their own, the same as in a deployment.
Whatever `MODELPRESS_*` says holds for them, but for the broker, which is always its own; the data folder is the default
place for everything.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType

from deploy.broker import NoBroker, answers, find_server, server_command, socket_path
from deploy.process import Process
from models import workers
from models.database import Database, migrate, now
from models.errors import Failure
from models.settings import Settings

START_SECONDS = 90.0
PORT_SECONDS = 5.0
WORKER_GRACE, API_GRACE, BROKER_GRACE = 30.0, 10.0, 5.0


class NotStarting(Exception):
    """The service cannot start; the message says why."""


class Embedded:
    """The service of one data folder. `serve` returns the exit status when it was told to stop."""

    def __init__(self, data: Path, port: int | None) -> None:
        self.data = data
        self._signals = 0
        self._socket = socket_path(data)
        self._environment = self._configure(port)
        self._settings = Settings()
        _wait_for_port(self._settings.host, self._settings.port)
        self.url = f"http://{_bracketed(self._settings.host)}:{self._settings.port}"
        self._processes: list[Process] = []

    def serve(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        database: Database | None = None
        try:
            broker = self._broker()
            self._start([broker])
            migrate(self._settings.database_url)
            database = Database(self._settings.database_url)
            self._start(self._services(database))
            if not self._signals:
                print(f"modelpress is up: {self.url}  (data in {self.data}; Ctrl-C stops it)", flush=True)
            while not self._signals:
                for process in self._processes:
                    if (news := process.keep_up()) is not None:
                        print(news, flush=True)
                time.sleep(0.1)
        finally:
            if database is not None:
                database.close()
            self._stop()
        print("modelpress has stopped", flush=True)
        return 0

    def _configure(self, port: int | None) -> dict[str, str]:
        """The environment of every process; also of this one, so that all read the same settings."""
        defaults = {
            "MODELPRESS_DATABASE_URL": f"sqlite:///{self.data / 'modelpress.sqlite3'}",
            "MODELPRESS_BLOBS": str(self.data / "blobs"),
            "MODELPRESS_WORK": str(self.data / "work"),
        }
        for name, value in defaults.items():
            os.environ.setdefault(name, value)
        os.environ["MODELPRESS_BROKER_URL"] = f"redis+socket://{self._socket}"
        host = Settings().host
        if port is not None:
            os.environ["MODELPRESS_PORT"] = str(port or _free_port(host))
        if _is_loopback(host):
            os.environ.setdefault("MODELPRESS_OPEN_ACCESS", "true")
        return dict(os.environ)

    def _broker(self) -> Process:
        command = server_command(find_server(), self._socket, self._socket.parent)
        return self._process("broker", command, lambda: answers(self._socket), BROKER_GRACE)

    def _services(self, database: Database) -> list[Process]:
        python = [sys.executable, "-P", "-m"]
        queues = {"control": "control", "device": f"device.{self._settings.device_class}"}
        found = [
            self._process(
                f"worker-{kind}",
                [*python, "worker", kind],
                lambda queue=queue: _serves(database, queue),
                WORKER_GRACE,
            )
            for kind, queue in queues.items()
        ]
        return [*found, self._process("api", [*python, "api"], lambda: _is_healthy(self.url), API_GRACE)]

    def _process(self, name: str, command: list[str], is_ready: object, grace: float) -> Process:
        logs = self.data / "logs"
        logs.mkdir(exist_ok=True)
        assert callable(is_ready)
        return Process(name, command, self._environment, logs / f"{name}.log", is_ready=is_ready, grace=grace)

    def _start(self, processes: list[Process]) -> None:
        """Start together and wait until all are ready. Raises `NotStarting` with what the one that failed said."""
        for process in processes:
            self._processes.append(process)
            process.start()
        deadline = time.monotonic() + START_SECONDS
        for process in processes:
            while not self._signals and not process.is_ready():
                for each in processes:
                    if (status := each.ended()) is not None:
                        raise NotStarting(f"{each.name} ended with {status}:\n{each.last_words()}")
                if time.monotonic() > deadline:
                    raise NotStarting(f"{process.name} is not ready after {START_SECONDS:g} s; see {process.log}")
                time.sleep(0.05)

    def _stop(self) -> None:
        """The api first, so that nothing new comes; then the workers, together; the broker last."""
        order = [[p for p in self._processes if p.name == "api"], [], []]
        order[1] = [p for p in self._processes if p.name.startswith("worker")]
        order[2] = [p for p in self._processes if p.name == "broker"]
        for group in order:
            for process in group:
                process.ask_to_stop()
            for process in group:
                process.wait_to_stop(lambda: self._signals > 1)
        self._socket.unlink(missing_ok=True)
        if self._socket.parent.parent != self.data:
            with contextlib.suppress(OSError):
                self._socket.parent.rmdir()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1


@contextlib.contextmanager
def data_folder(data: Path) -> Iterator[int]:
    """Hold the folder against a second service. Raises `NotStarting`. Yields the lock file, to say in it who runs."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(data / "service.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.read(lock, 4096).decode(errors="replace").strip()
            raise NotStarting(f"a service already runs on {data}: {said}; choose another --data") from None
        yield lock
        os.ftruncate(lock, 0)
    finally:
        os.close(lock)


def _serves(database: Database, queue: str) -> bool:
    """Whether a worker of this queue has registered and lives."""
    try:
        with database.read() as session:
            recent = now(session) - timedelta(seconds=10)
            return any(worker.queue == queue for worker in workers.live(session, heard_since=recent))
    except Failure:
        return False


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _free_port(host: str) -> int:
    return _bind(host, 0)


def _wait_for_port(host: str, port: int) -> None:
    """A service that was killed a moment ago may still hold it. Raises `NotStarting`."""
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        try:
            _bind(host, port)
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                message = f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
                raise NotStarting(message) from error
            time.sleep(0.1)


def _bind(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        bound: int = probe.getsockname()[1]
    return bound


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.embedded", description="Serve from one folder.")
    parser.add_argument("--port", type=int, default=None, help="default: MODELPRESS_PORT or 8000; 0 picks a free one")
    parser.add_argument("--data", type=Path, default=Path("var"), help="where everything is kept (default: ./var)")
    parser.add_argument(
        "--allow-weak-sandbox", action="store_true", help="start even where the kernel cannot confine an engine"
    )
    arguments = parser.parse_args()
    if arguments.allow_weak_sandbox:
        os.environ["MODELPRESS_ALLOW_WEAK_SANDBOX"] = "true"
    data = arguments.data.resolve()
    try:
        with data_folder(data) as lock:
            service = Embedded(data, arguments.port)
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps({"pid": os.getpid(), "url": service.url}).encode() + b"\n", 0)
            return service.serve()
    except (NotStarting, NoBroker, Failure) as problem:
        print(f"modelpress does not start: {problem}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
