"""Whose turn it is: tenants take turns, so that one who floods the queue delays the others by one job at most."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.selectable import ScalarSelect

from models.attempts import HELD
from models.statuses import JobStatus
from models.tables import Job


def next_job(device_class: str) -> ScalarSelect[str]:
    """The id of the job to claim next. First the tenant with the fewest jobs held by workers, then the one whose last
    job started longest ago; within a tenant the oldest job. Rows that another claim holds are passed over."""
    queued, held, earlier = aliased(Job, name="queued"), aliased(Job, name="held"), aliased(Job, name="earlier")
    claimable = and_(queued.status == JobStatus.QUEUED, queued.device.in_(("auto", device_class)))
    waiting = select(queued.tenant).where(claimable).group_by(queued.tenant).subquery("waiting")
    busy = (
        select(held.tenant, func.count().label("jobs"))
        .where(held.status.in_(HELD))
        .group_by(held.tenant)
        .subquery("busy")
    )
    last_start = select(func.max(earlier.started_at)).where(earlier.tenant == waiting.c.tenant).scalar_subquery()
    turn = (
        select(waiting.c.tenant, func.coalesce(busy.c.jobs, 0).label("jobs"), last_start.label("last_start"))
        .outerjoin(busy, busy.c.tenant == waiting.c.tenant)
        .cte("turn")
        .prefix_with("MATERIALIZED", dialect="postgresql")  # once a tenant, not once a queued job
    )
    return (
        select(queued.id)
        .join(turn, turn.c.tenant == queued.tenant)
        .where(claimable)
        .order_by(turn.c.jobs, turn.c.last_start.nulls_first(), queued.created_at, queued.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=queued)
        .scalar_subquery()
    )


def queued_count(session: Session, device_class: str) -> int:
    """How many jobs wait that a worker of this class could take."""
    return (
        session.scalar(
            select(func.count()).where(Job.status == JobStatus.QUEUED, Job.device.in_(("auto", device_class)))
        )
        or 0
    )


def queue_position(session: Session, job: Job) -> int | None:
    """1 for the job to start next, as far as turns can be foreseen; `None` when it does not wait."""
    return queue_positions(session, [job]).get(job.id)


def queue_positions(session: Session, jobs: Sequence[Job]) -> dict[str, int]:
    """The positions of those of `jobs` that wait, by id. Every tenant's oldest job comes before anybody's second.

    One statement for each device that is asked for."""
    waiting = [job for job in jobs if job.status == JobStatus.QUEUED]
    positions: dict[str, int] = {}
    for device in sorted({job.device for job in waiting}):
        rivals: ColumnElement[bool] = Job.status == JobStatus.QUEUED
        if device != "auto":
            rivals = and_(rivals, or_(Job.device == "auto", Job.device == device))
        turn = func.row_number().over(partition_by=Job.tenant, order_by=(Job.created_at, Job.id)).label("turn")
        turns = select(Job.id, Job.created_at, turn).where(rivals).subquery("turns")
        place = func.row_number().over(order_by=(turns.c.turn, turns.c.created_at, turns.c.id)).label("place")
        places = select(turns.c.id, place).subquery("places")
        mine = [job.id for job in waiting if job.device == device]
        found = select(places.c.id, places.c.place).where(places.c.id.in_(mine))
        positions |= dict(session.execute(found).tuples().all())
    return positions
