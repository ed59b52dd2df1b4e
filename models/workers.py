"""The workers that are, or were, alive: what this deployment can run, and where there is room."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from models.attempts import HELD
from models.database import upsert
from models.tables import Job, Worker


def register(session: Session, worker: Worker) -> None:
    """Announce a worker that starts, in place of one with the same id."""
    upsert(session, worker)


def beat(session: Session, worker_id: str, now: datetime) -> bool:
    """Say that it lives; `False`: it is not registered (any more) and must register again."""
    alive = update(Worker).where(Worker.id == worker_id).values(heartbeat_at=now).returning(Worker.id)
    return session.scalar(alive) is not None


def leave(session: Session, worker_id: str) -> None:
    """A worker that stops says so; one that was killed is not live after its heartbeat grows old."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def forget(session: Session, *, silent_since: datetime) -> int:
    """Delete the rows of workers that have been silent since then; returns how many."""
    gone = delete(Worker).where(Worker.heartbeat_at < silent_since).returning(Worker.id)
    return len(session.scalars(gone).all())


def live(session: Session, *, heard_since: datetime) -> list[Worker]:
    """The workers heard since then, device workers and control workers, by id."""
    return list(session.scalars(select(Worker).where(Worker.heartbeat_at >= heard_since).order_by(Worker.id)))


def free_slots(session: Session, *, heard_since: datetime) -> dict[str, int]:
    """For each device class with a live worker: how many more jobs could start now."""
    held = dict(
        session.execute(select(Job.worker_id, func.count()).where(Job.status.in_(HELD)).group_by(Job.worker_id))
        .tuples()
        .all()
    )
    free: dict[str, int] = {}
    for worker in live(session, heard_since=heard_since):
        if worker.device_class is not None:
            room = max(0, worker.slots - held.get(worker.id, 0))
            free[worker.device_class] = free.get(worker.device_class, 0) + room
    return free
