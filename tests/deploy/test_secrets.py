"""Distinctive secrets taken through a whole deployment, in good days and bad: none is in a log, an event, the database,
the broker, the metrics or an answer."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import redis

from api.auth import create_key
from models.database import Database, migrate
from tests.api import stories, tus
from tests.api.serving import served_by_a_process
from tests.api.stories import PRUNE
from tests.deploy.stack import PostgresOverTcp
from tests.object_store import SECRET as S3_SECRET
from tests.object_store import ObjectStore
from tests.services import Valkey
from tests.worker.fleet import until

ROOT = Path(__file__).resolve().parents[2]
BOOTSTRAP = "mp_" + "B00tstrapS3cret" * 3
DATABASE = "D4tabaseS3cret"
BROKER = "Br0kerS3cret"
METRICS = "M3tricsS3cretOfPrometheus"


class LockedValkey(Valkey):
    """With a password, over TCP."""

    def __init__(self, port: int) -> None:
        self._port = port
        super().__init__()
        self.client().config_set("requirepass", BROKER)

    def arguments(self) -> list[str]:
        return ["--port", str(self._port)]

    @property
    def url(self) -> str:
        return f"redis://:{BROKER}@127.0.0.1:{self._port}/0"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def worker(kind: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.promises.quick_worker", kind, "--allow-weak-sandbox"]
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_secret_leaves_its_place(tmp_path: Path, object_store: ObjectStore) -> None:
    environment = {"POSTGRES_DB": "modelpress", "POSTGRES_USER": "modelpress", "POSTGRES_PASSWORD": DATABASE}
    said: dict[str, str] = {}
    with ExitStack() as running:
        port = free_port()
        postgres = PostgresOverTcp(port, environment)
        running.callback(postgres.close)
        valkey = LockedValkey(free_port())
        running.callback(valkey.close)
        url = f"postgresql://modelpress:{DATABASE}@127.0.0.1:{port}/modelpress"
        migrate(url)
        database = Database(url)
        running.callback(database.close)
        settings = {
            "database_url": url,
            "broker_url": valkey.url,
            "bootstrap_key": BOOTSTRAP,
            "metrics_token": METRICS,
            "log_level": "debug",
            "work": tmp_path / "work",
            "sweep_seconds": 0.5,
            "incoming": tmp_path / "incoming",
            **object_store.settings(),
        }
        _, base_url = running.enter_context(served_by_a_process(tmp_path, log_format="json", **settings))
        with database.transaction() as session:
            bearer = create_key(session, "default", "mine")
        client = running.enter_context(
            httpx.Client(base_url=base_url, timeout=60, headers={"Authorization": f"Bearer {bearer}"})
        )
        network = stories.upload_network(client)
        stories.inspect_next(database, stories.NETWORK)
        upload = tus.sent(client, stories.a_pt2(b"another"))
        spec = {"model": network, "steps": [PRUNE], "metadata": {"do": "finish"}}
        job = client.post("/jobs", json=spec).json()
        plain = {
            "PATH": os.environ["PATH"],
            **{f"MODELPRESS_{name.upper()}": str(value) for name, value in settings.items()},
        }
        with worker("device", tmp_path, plain), worker("control", tmp_path, plain | {"MODELPRESS_LOG_FORMAT": "json"}):
            until(lambda: client.get(f"/jobs/{job['id']}").json()["status"] == "succeeded", "a job", 60)
            rejected = client.post("/models", params={"upload": upload}).json()["id"]
            until(lambda: client.get(f"/models/{rejected}").json()["status"] == "rejected", "a rejection", 60)

        odd = (
            httpx.Client(base_url=base_url).get("/jobs", headers={"Authorization": f"Bearer {BOOTSTRAP}"}),
            client.get(f"/jobs/{bearer}", headers={"X-Request-Id": bearer}),
            client.get(f"/jobs/{job['id']}/artifacts/{bearer}"),
            client.delete(f"/models/{bearer}"),
            httpx.get(f"{base_url}/metrics", headers={"Authorization": f"Bearer {bearer}"}),
            httpx.get(f"{base_url}/jobs", auth=("user", BOOTSTRAP)),
        )
        for number, answer in enumerate(odd):
            assert answer.status_code < 500, answer.text
            said[f"answer {number}"] = f"{answer.headers} {answer.text}"
        metrics = httpx.get(f"{base_url}/metrics", headers={"Authorization": f"Bearer {METRICS}"})
        assert metrics.status_code == 200
        said["metrics"] = metrics.text
        for part in ("events", "log", "report", "artifacts"):
            said[part] = client.get(f"/jobs/{job['id']}/{part}").text
        assert "succeeded" in said["events"]
        said["database"] = postgres.dump("modelpress")
        assert job["id"] in said["database"]
        broker = running.enter_context(redis.Redis.from_url(valkey.url))
        said["broker"] = "\n".join(f"{key!r} {broker.dump(key)!r}" for key in broker.scan_iter())
        assert "celery" in said["broker"]

        valkey.stop()
        assert client.post("/jobs", json=spec).status_code == 202
        postgres.stop()
        failed = client.get("/jobs")
        assert failed.status_code == 503
        said["answer 503"] = failed.text
    for name in ("api", "device", "control"):
        said[name] = (tmp_path / f"{name}.log").read_text()
    assert '"level": "debug"' in said["api"]
    assert "DEBUG" in said["device"]
    assert "were not sent" in said["api"]
    secrets = {"bearer": bearer, "bootstrap": BOOTSTRAP, "database": DATABASE, "broker": BROKER, "s3": S3_SECRET}
    for what, secret in {**secrets, "metrics": METRICS}.items():
        places = [place for place, text in said.items() if secret in text or secret.removeprefix("mp_") in text]
        assert places == [], what


@pytest.mark.parametrize(
    "changes",
    [
        {"MODELPRESS_METRICS_TOKEN": "S3cretShort"},
        {"MODELPRESS_DATABASE_URL": "postgresql://modelpress:S3cret@127.0.0.1:1/x"},
        {"MODELPRESS_DATABASE_URL": "postgresql:/modelpress:S3cret@127.0.0.1"},
        {"MODELPRESS_BLOBS": "s3://", "MODELPRESS_S3_SECRET_ACCESS_KEY": "S3cret", "MODELPRESS_OPEN_ACCESS": "true"},
    ],
)
def test_a_service_that_does_not_start_says_why_and_no_secret(tmp_path: Path, changes: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "api"],
        env={"PATH": os.environ["PATH"], **changes},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr
    assert "S3cret" not in done.stdout + done.stderr
