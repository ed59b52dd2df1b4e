"""A real API for the client to talk to; the test plays the worker, by the functions that workers use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpress import Client
from models.attempts import PublishedArtifact
from models.settings import Settings
from models.transitions import succeed
from tests.api.serving import Api, served
from tests.client.wire import Wire
from tests.models.rows import REPORT, at, claim, submit

TENANT = "default"


@pytest.fixture
def api(sqlite_url: str, tmp_path: Path) -> Iterator[Api]:
    settings = Settings(
        database_url=sqlite_url,
        broker_url="redis://127.0.0.1:1/0",
        blobs=tmp_path / "blobs",
        work=tmp_path / "work",
        open_access=True,
        max_model_bytes=64 << 20,
    )
    with served(settings) as running:
        yield running


@pytest.fixture
def client(api: Api) -> Iterator[Client]:
    with Client(api.base_url) as opened:
        yield opened


@pytest.fixture
def wire(api: Api) -> Iterator[Wire]:
    """A line to the API that a test can cut or garble."""
    with Wire(int(api.base_url.rpartition(":")[2])) as line:
        yield line


@pytest.fixture
def running_job(api: Api) -> str:
    """A job that attempt 1 of a worker holds."""
    with api.service.database.transaction() as session:
        job_id = submit(session, TENANT)
        claimed = claim(session)
        assert claimed is not None
        assert claimed.id == job_id
    return job_id


@pytest.fixture
def finish(api: Api) -> Callable[[str, dict[str, bytes]], None]:
    """Publish files and let the job succeed."""

    def finished(job_id: str, files: dict[str, bytes]) -> None:
        artifacts = []
        for name, content in files.items():
            with api.service.blobs.writer() as writer:
                writer.write(content)
                blob = writer.publish()
            artifacts.append(
                PublishedArtifact(
                    name=name,
                    kind="pt2" if name.endswith(".pt2") else "onnx",
                    content_type="application/octet-stream",
                    size_bytes=blob.size_bytes,
                    sha256=blob.sha256,
                )
            )
        with api.service.database.transaction() as session:
            assert succeed(session, job_id, 1, REPORT, artifacts, at(1))

    return finished
