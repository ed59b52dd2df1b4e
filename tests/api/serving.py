"""The real service on a free port: in a thread, where a test looks inside, or as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from api.app import create_app
from api.deps import Service
from api.server import Server
from models.settings import Settings

START_SECONDS = 60.0


class Api:
    """A running service. `client` speaks to it as the tenant of open access."""

    def __init__(self, base_url: str, service: Service) -> None:
        self.base_url = base_url
        self.service = service
        self.client = httpx.Client(base_url=base_url, timeout=60)

    def with_key(self, secret: str) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=60, headers={"Authorization": f"Bearer {secret}"})


@contextmanager
def served(settings: Settings) -> Iterator[Api]:
    """In a thread of this process."""
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the service did not start")
        time.sleep(0.01)
    api = Api(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state.service)
    try:
        yield api
    finally:
        api.client.close()
        server.should_exit = True
        thread.join(30)
        listener.close()


@contextmanager
def served_by_a_process(folder: Path, **settings: Any) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m api`, as a person starts it; yields the process and its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MODELPRESS_")},
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "MODELPRESS_PORT": str(port),
        **{f"MODELPRESS_{name.upper()}": str(value) for name, value in settings.items()},
    }
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api"], env=environment, cwd=folder, stdout=log, stderr=log)
    base_url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                httpx.get(f"{base_url}/healthz", timeout=5)
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((folder / "api.log").read_text()) from None
                time.sleep(0.05)
        yield process, base_url
    finally:
        process.kill()
        process.wait(10)
