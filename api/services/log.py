"""The engine's log of a job."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import select

from api.deps import Service
from api.services.jobs import own_job
from models.tables import Log

PIECES_A_READ = 100


def pieces(service: Service, tenant: str, job_id: str) -> Iterator[str]:
    """The log in order, a few pieces in memory at a time. Raises before the first when there is no such job."""
    with service.database.read() as session:
        own_job(session, tenant, job_id)
    return _pieces(service, job_id)


def _pieces(service: Service, job_id: str) -> Iterator[str]:
    last = 0
    while True:
        with service.database.read() as session:
            rows = session.scalars(
                select(Log).where(Log.job_id == job_id, Log.id > last).order_by(Log.id).limit(PIECES_A_READ)
            ).all()
        for row in rows:
            yield row.text
        if len(rows) < PIECES_A_READ:
            return
        last = rows[-1].id
