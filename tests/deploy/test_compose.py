"""docker-compose.yml: valid, hardened, naming only what exists; and its services, run as it says, finish a job."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from deploy import compose
from modelpress import Client
from models.settings import Settings
from tests.deploy.stack import ROOT, SECRETS, Stack, nginx
from tests.e2e.jobs import write_data, write_network

KEY = {"Authorization": f"Bearer {SECRETS['MODELPRESS_BOOTSTRAP_KEY']}"}
OURS = ("migrate", "api", "control", "worker", "worker-gpu")
DOCKERFILE = (ROOT / "Dockerfile.gpu").read_text()
SERVICES: dict[str, Any] = compose.read(SECRETS)["services"]


def _run(*command: str) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_compose_schema_accepts_the_file() -> None:
    assert "ok" in _run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


def test_hadolint_has_nothing_to_say() -> None:
    assert _run("hadolint", "Dockerfile.gpu") == ""


@pytest.mark.parametrize("name", ["POSTGRES_PASSWORD", "REDIS_PASSWORD"])
@pytest.mark.parametrize("value", [None, ""])
def test_it_refuses_to_start_without_a_password(name: str, value: str | None) -> None:
    given = {key: text for key, text in SECRETS.items() if key != name}
    with pytest.raises(compose.MissingVariable, match=f"{name}: set it in .env"):
        compose.read(given if value is None else given | {name: value})


def test_the_example_names_every_variable_and_has_a_value_for_no_secret() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = [match.groups() for line in lines if (match := re.fullmatch(r"(# )?([A-Z_]+)=(.*)", line))]
    assert {name for _, name, _ in pairs} == compose.variables_of()
    assert {name: value for comment, name, value in pairs if not comment} == dict.fromkeys(SECRETS, "")
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def test_every_setting_it_sets_exists() -> None:
    known = {f"MODELPRESS_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        used = {key for key in SERVICES[name]["environment"] if key.startswith("MODELPRESS_")}
        assert used <= known
        assert used


def test_only_who_tells_webhooks_has_what_signs_them() -> None:
    services = compose.read(SECRETS | {"MODELPRESS_WEBHOOK_SECRET": "x" * 32})["services"]
    holders = {name for name in services if "MODELPRESS_WEBHOOK_SECRET" in services[name].get("environment", {})}
    assert holders == {"api", "control"}


def test_every_module_it_runs_exists_and_belongs_to_its_image() -> None:
    for name in OURS:
        checks = [SERVICES[name]["healthcheck"]["test"][1:]] if "healthcheck" in SERVICES[name] else []
        for command in [SERVICES[name]["command"], *checks]:
            assert command[:3] == ["python", "-P", "-m"]
            assert find_spec(command[3]) is not None
            assert command[3].partition(".")[0] == SERVICES[name]["build"]["target"]


def test_every_service_is_hardened() -> None:
    for service in SERVICES.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is True
        assert service["user"] not in ("root", "0", "0:0")
        assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
        assert service["pids_limit"] <= 1024
        assert compose.size(service["mem_limit"]) > 0
        assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
        assert "docker.sock" not in json.dumps(service)
        assert all(mount.endswith(":ro") for mount in service.get("volumes", []) if mount.startswith("."))
    for name in ("control", "worker", "worker-gpu"):
        assert SERVICES[name]["stop_grace_period"] == "45s"
        assert compose.size(SERVICES[name]["shm_size"]) > 0


def test_what_runs_for_long_is_checked_and_started_again_and_what_migrates_runs_once() -> None:
    for name, service in SERVICES.items():
        assert service["restart"] == ("no" if name == "migrate" else "unless-stopped")
        assert ("healthcheck" in service) == (name != "migrate")


def test_only_the_proxy_is_seen_from_outside() -> None:
    project = compose.read(SECRETS)
    assert project["networks"]["inside"]["internal"] is True
    for name, service in project["services"].items():
        also = {"proxy": ["outside"], "api": ["webhooks"], "control": ["webhooks"]}
        assert service["networks"] == ["inside", *also.get(name, [])]
        assert ("ports" in service) == (name == "proxy")
    assert project["networks"]["webhooks"]["internal"] == "true"
    assert compose.read(SECRETS | {"WEBHOOKS_INTERNAL": "false"})["networks"]["webhooks"]["internal"] == "false"
    assert project["services"]["proxy"]["ports"] == ["127.0.0.1:8080:8080"]


def test_every_volume_is_declared_and_the_images_make_its_folder_for_their_user() -> None:
    project = compose.read(SECRETS)
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", [])]
    named = {mount[0] for mount in mounts if len(mount) > 1 and not mount[0].startswith(".")}
    assert named == set(project["volumes"]) == {"postgres", "redis", "blobs"}
    assert all((ROOT / mount[0]).is_file() for mount in mounts if mount[0].startswith("."))
    assert "--owner=10001 --group=10001 --mode=0750 /blobs /work" in DOCKERFILE
    for name in OURS:
        assert SERVICES[name]["user"] == "10001:10001"
    assert len(re.findall(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)) == 2


def test_the_images_are_built_from_files_that_exist_with_the_health_checks_of_the_compose_file() -> None:
    sources = [
        part for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE) for part in line.split()[:-1]
    ]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists()
        assert source.rstrip("/") in kept
    for name in ("api", "worker"):
        build = SERVICES[name]["build"]
        assert build["dockerfile"] == "Dockerfile.gpu"
        _, _, target = DOCKERFILE.partition(f"\nFROM base AS {build['target']}\n")
        target = target.partition("\nFROM")[0]
        for kind, wanted in (("HEALTHCHECK", SERVICES[name]["healthcheck"]["test"][1:]), ("CMD", None)):
            found = re.search(rf"^{kind} .*?(\[.*\])$", target, re.MULTILINE)
            assert found is not None
            assert json.loads(found[1]) == (wanted or SERVICES[name]["command"])


def test_requirements_are_those_of_the_project_and_an_unknown_extra_is_refused() -> None:
    command = [sys.executable, "deploy/requirements.py"]
    api = subprocess.run([*command, "api"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {re.split(r"[>\[]", line)[0] for line in api} >= {"httpx", "fastapi", "celery", "psycopg"}
    assert not any(line.startswith(("torch", "numpy", "onnx")) for line in api)
    refused = subprocess.run([*command, "nothing"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "KeyError: 'nothing'" in refused.stderr


def test_services_that_wait_for_each_other_are_refused() -> None:
    assert compose.in_order({"a": {"depends_on": {"b": {}}}, "b": {}}) == ["b", "a"]
    with pytest.raises(ValueError, match="depends_on goes in circles"):
        compose.in_order({"a": {"depends_on": {"b": {}}}, "b": {"depends_on": {"a": {}}}})


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything up, in the order of `depends_on`; without the GPU's worker, and without nginx where there is none."""
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        for name in compose.in_order(running.services):
            if name == "worker-gpu" or (name == "proxy" and nginx() is None):
                continue
            if name == "migrate":
                done = running.run(name)
                assert done.returncode == 0, done.stderr
                continue
            for dependency, demand in running.services[name].get("depends_on", {}).items():
                if demand["condition"] == "service_healthy" and dependency != "redis":
                    running.until_healthy(dependency)
            running.start(name)
        running.until_healthy("api", "control", "worker")
        yield running


@pytest.fixture
def url(stack: Stack) -> str:
    if nginx() is None:
        pytest.skip("no nginx on PATH: apt-get install nginx-light")
    stack.until_healthy("proxy")
    return stack.url


def test_a_job_is_finished_by_the_services_as_they_are_deployed(stack: Stack, url: str, tmp_path: Path) -> None:
    with Client(url, SECRETS["MODELPRESS_BOOTSTRAP_KEY"]) as client:
        network = client.models.upload(write_network("vgg", tmp_path))
        data = client.datasets.upload(write_data("vgg", tmp_path))
        steps = [{"step": "prune", "amount": {"macs": 0.5}, "round_to": 2}, {"step": "quantize"}]
        job = client.jobs.create(model=network.id, dataset=data.id, steps=steps)
        seen: list[str] = []
        job.wait(timeout=240, on_event=lambda event: seen.append(event.type))
        assert job.status == "succeeded", job.log()
        assert "step" in seen
        job.download(tmp_path / "out")
        assert job.report()["compressed"]["macs"] < job.report()["original"]["macs"]
    assert {"model.onnx", "report.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
    with stack.connect() as connection:
        assert connection.execute("SELECT count(*) FROM jobs WHERE status = 'succeeded'").fetchone() == (1,)


def test_the_broker_keeps_what_it_has_and_lets_nobody_in_without_the_password(stack: Stack) -> None:
    port = int(stack.environment("api")["MODELPRESS_BROKER_URL"].rpartition(":")[2].partition("/")[0])
    with redis.Redis(port=port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis(port=port, password=SECRETS["REDIS_PASSWORD"]) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert SECRETS["REDIS_PASSWORD"] not in json.dumps(stack.command("redis"))


def test_the_health_checks_of_the_servers_work(stack: Stack) -> None:
    stack.until_healthy("postgres")
    if subprocess.run(["sh", "-c", "command -v redis-cli"], capture_output=True, check=False).returncode == 0:
        stack.until_healthy("redis")


def test_migrating_again_does_nothing(stack: Stack) -> None:
    assert stack.run("migrate").returncode == 0


def test_a_key_can_be_made_beside_the_first_one(stack: Stack, url: str) -> None:
    made = stack.run("api", "python", "-P", "-m", "api", "keys", "create", "--read-only")
    key = {"Authorization": f"Bearer {made.stdout.strip()}"}
    assert httpx.get(f"{url}/jobs", headers=key).status_code == 200
    assert httpx.get(f"{url}/jobs").status_code == 401


def _connect(url: str) -> socket.socket:
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def test_the_proxy_passes_a_body_on_as_it_comes(url: str) -> None:
    """The refusal is there before the body's end: a proxy that collects bodies first would wait for it."""
    with _connect(url) as line:
        line.sendall(b"POST /models?name=x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1024)
        assert line.recv(64).startswith(b"HTTP/1.1 401 ")


def test_the_proxy_refuses_huge_headers_with_a_problem(url: str) -> None:
    answer = httpx.get(f"{url}/healthz", headers={"X-Long": "a" * 100_000})
    assert (answer.status_code, answer.headers["content-type"]) == (431, "application/problem+json")
    assert answer.json()["code"] == "headers_too_large"


def test_the_proxy_closes_on_a_header_that_does_not_end(url: str) -> None:
    with _connect(url) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        said: bytes | None = None
        with contextlib.suppress(ConnectionResetError):
            said = line.recv(64)
        assert not said


def test_each_stops_within_its_grace_and_its_health_check_says_so(stack: Stack, url: str) -> None:
    for name in ("worker", "control", "api"):
        assert stack.health(name).returncode == 0
        status, took = stack.stop(name)
        assert status == (-signal.SIGTERM if name == "api" else 0)  # uvicorn ends by the signal, when all is done
        assert took < compose.seconds(stack.services[name]["stop_grace_period"])
        assert stack.health(name).returncode == 1
    assert list((stack.folder / "work").glob("worker-*")) == []
    answer = httpx.get(f"{url}/readyz")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "unavailable", "5")
