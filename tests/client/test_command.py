"""The command against a real API: exit statuses, and what people read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from api.auth import create_key
from models.settings import Settings
from models.statuses import JobStatus
from models.transitions import cancel, fail, mark_cancelled
from tests.api.serving import Api, served
from tests.client.conftest import TENANT
from tests.models.rows import ERROR, at

COMMAND = Path(sys.executable).with_name("modelpress")
Finish = Callable[[str, dict[str, bytes]], None]


def _run(url: str, *arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MODELPRESS_URL": url} | more
    return subprocess.run(
        [COMMAND, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=60
    )


def test_watch_ends_with_the_outcome_of_the_job(api: Api, running_job: str, finish: Finish) -> None:
    finish(running_job, {})
    done = _run(api.base_url, "watch", running_job)
    assert done.returncode == 0, done.stderr


def test_watching_a_failed_job_is_status_1_with_error_hint_and_the_way_to_the_log(api: Api, running_job: str) -> None:
    with api.service.database.transaction() as session:
        assert fail(session, running_job, 1, ERROR, at(1))
    done = _run(api.base_url, "watch", running_job)
    assert done.returncode == 1
    for part in (ERROR.message, ERROR.hint, f"modelpress log {running_job}"):
        assert part in done.stderr


def test_watching_a_cancelled_job_is_status_3(api: Api, running_job: str) -> None:
    with api.service.database.transaction() as session:
        assert cancel(session, TENANT, running_job, at(1)) is JobStatus.CANCELLING
        assert mark_cancelled(session, running_job, 1, at(2))
    assert _run(api.base_url, "watch", running_job).returncode == 3


def test_control_c_stops_watching_and_not_the_job(api: Api, running_job: str) -> None:
    watching = subprocess.Popen(
        [COMMAND, "--url", api.base_url, "watch", running_job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what a shell runs behind it ignores that
    )
    with watching:
        assert watching.stderr is not None
        assert running_job in watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert "goes on" in said
    assert f"modelpress watch {running_job}" in said
    assert f"modelpress cancel {running_job}" in said
    assert "Traceback" not in said
    assert api.client.get(f"/jobs/{running_job}").json()["status"] == "running"


def test_a_spec_with_mistakes_is_status_2_with_every_pointer(api: Api, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"model": "net_1", "steps": [{"step": "prune", "amount": {"macs": 3}}], "sped": 1}))
    done = _run(api.base_url, "submit", str(spec))
    assert done.returncode == 2
    assert "/steps/0" in done.stderr
    assert "/sped" in done.stderr
    assert "/webhook/url" in _run(api.base_url, "submit", str(spec), "--webhook", "x" * 2049).stderr
    assert "Traceback" not in done.stderr
    spec.write_text("{")
    assert "is not JSON" in _run(api.base_url, "submit", str(spec)).stderr


def test_jobs_cancel_log_and_fetch(api: Api, running_job: str, finish: Finish, tmp_path: Path) -> None:
    assert running_job in _run(api.base_url, "jobs").stdout
    assert _run(api.base_url, "log", running_job).returncode == 0
    finish(running_job, {"network.onnx": b"onnx"})
    done = _run(api.base_url, "fetch", running_job, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / running_job / "network.onnx").read_bytes() == b"onnx"
    assert _run(api.base_url, "cancel", running_job).returncode == 2
    gone = _run(api.base_url, "watch", "job_nothing")
    assert gone.returncode == 2
    assert "Check the id" in gone.stderr


@pytest.fixture
def locked(api: Api) -> tuple[Api, str]:
    """A service with keys, and one of them."""
    with api.service.database.transaction() as session:
        secret = create_key(session, TENANT, "mine")
    return api, secret


def test_a_key_is_asked_for_and_taken_from_the_environment(locked: tuple[Api, str]) -> None:
    api, secret = locked
    settings: Settings = api.service.settings.model_copy(update={"open_access": False})
    with served(settings) as closed:
        refused = _run(closed.base_url, "jobs", MODELPRESS_KEY="")
        assert refused.returncode == 2
        assert "Authorization: Bearer" in refused.stderr
        assert _run(closed.base_url, "jobs", MODELPRESS_KEY=secret).returncode == 0


def test_a_proxy_in_the_environment_does_not_hide_a_service_on_this_machine(api: Api, running_job: str) -> None:
    done = _run(api.base_url, "jobs", http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert running_job in done.stdout
