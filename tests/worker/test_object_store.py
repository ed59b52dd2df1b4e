"""Workers over a bucket: inputs come to the work folder, outputs go back."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select

from models.statuses import JobStatus
from models.tables import Artifact
from tests.object_store import ObjectStore
from tests.services import Valkey
from tests.worker.fleet import Fleet


def test_a_job_runs_from_a_bucket(tmp_path: Path, sqlite_url: str, valkey: Valkey, object_store: ObjectStore) -> None:
    settings = object_store.settings()
    environment = {f"MODELPRESS_{name.upper()}": str(value) for name, value in settings.items()}
    fleet = Fleet(tmp_path, sqlite_url, valkey, **environment)
    fleet.blobs = object_store.blobs(settings)
    with fleet:
        fleet.start("device")
        job_id = fleet.submit("finish")
        fleet.wait(job_id, JobStatus.SUCCEEDED)
        with fleet.database.read() as session:
            artifacts = session.scalars(select(Artifact).where(Artifact.job_id == job_id)).all()
        assert artifacts
        assert all(fleet.blobs.verify(artifact.sha256) for artifact in artifacts)
