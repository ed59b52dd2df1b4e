"""The embedded service on a machine whose kernel cannot confine an engine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

OLD_KERNEL = [sys.executable, "-m", "tests.worker.old_kernel", "landlock", "deploy.embedded", "--port", "0", "--data"]


def _start(data: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELPRESS_")}
    return subprocess.Popen(
        [*OLD_KERNEL, str(data), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_does_not_start_and_says_why_and_what_to_do(tmp_path: Path) -> None:
    service = _start(tmp_path / "data")
    said, _ = service.communicate(timeout=100)
    assert service.returncode == 1
    assert "modelpress does not start" in said
    assert "no Landlock (Linux 5.13 or newer" in said
    assert "--allow-weak-sandbox" in said


def test_it_starts_when_it_is_told_that_every_upload_is_trusted(tmp_path: Path) -> None:
    service = _start(tmp_path / "data", "--allow-weak-sandbox")
    assert service.stdout is not None
    assert service.stdout.readline().startswith("modelpress is up: ")
    service.send_signal(signal.SIGTERM)
    service.communicate(timeout=100)
    assert service.returncode == 0
    assert "Trust every upload" in (tmp_path / "data" / "logs" / "worker-device.log").read_text()
