"""The control worker's hourly round, by a real worker."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from sqlalchemy import func, select

from models.database import now
from models.tables import CondemnedBlob, Idempotency
from tests.worker.fleet import Fleet, until


def test_a_control_worker_deletes_what_is_not_needed_any_more(fleet: Fleet) -> None:
    job_id = fleet.submit("finish", nudge=False)
    fleet.cancel(job_id)
    with fleet.database.transaction() as session:
        long_ago = now(session) - timedelta(days=3)
        fleet_job = fleet.job(job_id)
        session.merge(fleet_job).finished_at = long_ago
        session.add(Idempotency(tenant="t", key="k", body_sha256="", job_id=job_id, created_at=long_ago))
    with fleet.blobs.writer() as writer:
        writer.write(b"nobody's")
        orphan = writer.publish()
    for sha256 in (orphan.sha256, fleet.blobs.put_file(_file(fleet)).sha256):
        os.utime(fleet.folder / "blobs" / sha256[:2] / sha256[2:4] / sha256, (0, 0))
    fleet.start("control", MODELPRESS_KEEP_JOBS_DAYS="2")

    def rows() -> tuple[int, int]:
        with fleet.database.read() as session:
            keys = session.scalar(select(func.count()).select_from(Idempotency)) or 0
            condemned = session.scalars(select(CondemnedBlob.sha256)).all()
            assert set(condemned) <= {orphan.sha256}
            return keys, len(condemned)

    until(lambda: rows() == (0, 1), "the key to go and the bytes to be condemned")
    with fleet.database.read() as session:
        assert session.get(type(fleet_job), job_id) is None
    assert fleet.blobs.verify(orphan.sha256)


def _file(fleet: Fleet) -> Path:
    """The bytes of the network that `Fleet` has uploaded, once more."""
    path = fleet.folder / "again"
    path.write_bytes(b"good network")
    return path
