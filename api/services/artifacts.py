"""Files given back. A download is checked against its SHA-256 before its first byte is sent, and piece by piece on
its way out."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.auth import Caller
from api.deps import Service
from api.services.jobs import own_job, refuse_before_the_end
from models import audit
from models.audit import Action
from models.blobs import StoredBlob
from models.database import now
from models.errors import Code, Failure
from models.tables import Artifact, Job
from models.views import ArtifactList, ArtifactView

logger = logging.getLogger("modelpress.api")


@dataclass(frozen=True)
class Download:
    """`file` is open: bytes that are collected meanwhile can still be read to their end."""

    file: BinaryIO
    stored: StoredBlob
    artifact: Artifact


def listing(service: Service, tenant: str, job_id: str) -> ArtifactList:
    with service.database.read() as session:
        own_job(session, tenant, job_id)
        return ArtifactList(data=[view(artifact) for artifact in _of_job(session, job_id)])


def every(service: Service, tenant: str, job_id: str) -> list[Artifact]:
    """All files of a job, by name. Raises `Failure` with `not_ready` while it may still make some, and `not_found`."""
    with service.database.read() as session:
        job = own_job(session, tenant, job_id)
        found = _of_job(session, job_id)
        refuse_before_the_end(job, "files")
        if not found:
            raise Failure(Code.NOT_FOUND, f"The job has {job.status}: it has no files.")
        return found


def _of_job(session: Session, job_id: str) -> list[Artifact]:
    return list(session.scalars(select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name)))


def view(artifact: Artifact) -> ArtifactView:
    return ArtifactView(
        name=artifact.name,
        kind=artifact.kind,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        content_type=artifact.content_type,
        partial=artifact.partial,
        url=f"/jobs/{artifact.job_id}/artifacts/{quote(artifact.name, safe='')}",
    )


def find(service: Service, tenant: str, job_id: str, name: str) -> Artifact:
    """Raises `Failure` with `not_ready` while the job may still make it, and `not_found`."""
    with service.database.read() as session:
        job = own_job(session, tenant, job_id)
        artifact = session.get(Artifact, (job_id, name)) if "\x00" not in name else None
        if artifact is None:
            raise _no_such_artifact(session, job)
        return artifact


def leave_trace(service: Service, caller: Caller, action: Action, object_id: str) -> None:
    """Say in the audit trail that bytes are given out, before the first one is: each request, also for a range."""
    with service.database.transaction() as session:
        audit.record(session, caller, action, object_id, now(session))


def download(service: Service, artifact: Artifact) -> Download:
    """The file to send, whole and unchanged since it was published.

    Raises `Failure` with `file_damaged` for damaged or lost bytes; so may `file`, when it is read.
    """
    try:
        stored = service.blobs.stat(artifact.sha256)
        return Download(service.verified.open(service.blobs, stored), stored, artifact)
    except Failure as failure:
        if failure.code not in (Code.NOT_FOUND, Code.FILE_DAMAGED):
            raise
        said = failure.message if failure.code is Code.FILE_DAMAGED else "The bytes of this file are lost."
        logger.error("artifact %s of %s, %s: %s", artifact.name, artifact.job_id, artifact.sha256, said)
        raise Failure(Code.FILE_DAMAGED, said, where=artifact.name) from failure


def _no_such_artifact(session: Session, job: Job) -> Failure:
    refuse_before_the_end(job, "files")
    names = session.scalars(select(Artifact.name).where(Artifact.job_id == job.id).order_by(Artifact.name)).all()
    return Failure(Code.NOT_FOUND, f"The job has no such file; it has {', '.join(names) or 'none'}.")
