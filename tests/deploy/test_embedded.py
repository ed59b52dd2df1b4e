"""The embedded service as a person runs it: one command, one folder, real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.broker import NoBroker, check_version, socket_path

PATIENCE = 60.0


class Service:
    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELPRESS_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deploy.embedded", "--port", "0", "--data", str(data), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def url(self) -> str:
        """Once it is up."""
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first.startswith("modelpress is up: "), first + self.process.stdout.read()
        return first.split()[3]

    def family(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))

    def named(self, part: str) -> psutil.Process:
        return next(process for process in self.family() if part in " ".join(process.cmdline()))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path / "data")
    yield service
    if service.process.poll() is None:
        service.process.terminate()
        service.process.wait(PATIENCE)
    assert service.process.stdout is not None
    service.process.stdout.close()


def _until(look: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        assert time.monotonic() < deadline, f"waited for: {what}"
        time.sleep(0.05)


def _get(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except (urllib.error.URLError, OSError):
        return 0


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_it_comes_up_open_on_loopback_with_every_part_and_stops_without_a_trace(service: Service) -> None:
    url = service.url()
    with urllib.request.urlopen(f"{url}/capabilities", timeout=5) as answer:
        capabilities = json.load(answer)
    assert [device["device"] for device in capabilities["devices"]] == ["cpu"]
    family = service.family()
    assert len(family) == 4
    assert sorted(path.name for path in (service.data / "logs").iterdir()) == [
        "api.log",
        "broker.log",
        "worker-control.log",
        "worker-device.log",
    ]
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(PATIENCE) == 0
    assert _alive(family) == []
    assert list((service.data / "work").glob("worker-*")) == []
    assert list((service.data / "broker").glob("*.sock")) == []


def test_a_second_service_on_the_same_folder_is_refused_by_name(service: Service) -> None:
    url = service.url()
    second = Service(service.data)
    said, _ = second.process.communicate(timeout=PATIENCE)
    assert second.process.returncode == 1
    assert "a service already runs on" in said
    assert url in said


def test_whatever_dies_is_started_again(service: Service) -> None:
    url = service.url()
    for part in ("valkey-server", "worker control", "worker device", "-m api"):
        victim = service.named(part)
        victim.kill()
        _until(lambda victim=victim: not victim.is_running(), "the end of it")  # type: ignore[misc]
    _until(lambda: len(_alive(service.family())) == 4, "all four to be there again")
    _until(lambda: _get(f"{url}/readyz") == 200, "the api to be ready again")


def test_a_killed_supervisor_leaves_nothing_behind_and_its_folder_can_be_served_again(service: Service) -> None:
    service.url()
    family = service.family()
    service.process.kill()
    service.process.wait()
    _until(lambda: not _alive(family), "every process to be gone")
    again = Service(service.data)
    try:
        assert _get(f"{again.url()}/readyz") == 200
    finally:
        again.process.terminate()
        again.process.communicate(timeout=PATIENCE)


def test_a_port_in_use_is_named(tmp_path: Path, service: Service) -> None:
    port = service.url().rpartition(":")[2]
    second = Service(tmp_path / "other", "--port", port)
    said, _ = second.process.communicate(timeout=PATIENCE)
    assert second.process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("Redis server v=6.0.16 sha=00000000:0", False),
        ("Redis server v=6.2.0 sha=00000000:0", True),
        ("Server v=9.1.2 sha=00000000:0", True),
        ("something else", False),
    ],
)
def test_a_broker_older_than_redis_6_2_is_refused(tmp_path: Path, said: str, accepted: bool) -> None:
    server = tmp_path / "redis-server"
    server.write_text(f"#!/bin/sh\necho '{said}'\n")
    server.chmod(0o755)
    if accepted:
        assert check_version(str(server)) == str(server)
    else:
        with pytest.raises(NoBroker, match=r"6\.2 or newer"):
            check_version(str(server))


def test_a_folder_whose_name_is_too_long_for_a_socket_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    path = socket_path(tmp_path / ("a" * 100))
    try:
        assert len(str(path)) < 100
        assert path.parent.stat().st_mode & 0o077 == 0
    finally:
        path.parent.rmdir()
