"""Whose turn it is: tenants take turns, so that one who floods the queue delays the others by one job at most."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, func, or_, select
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.selectable import ScalarSelect

from models.attempts import HELD
from models.statuses import JobStatus
from models.tables import Job, Tenant


def turns(session: Session, device_class: str, max_running: int | None = None) -> list[tuple[str, int | None]]:
    """The tenants that wait for this device class and may run one job more, and how many each may run: first who has
    the fewest jobs held by workers, then whose last job started longest ago, then whose oldest job is older.

    `max_running` is for those with no limit of their own; `None`: no limit."""
    held, earlier = aliased(Job, name="held"), aliased(Job, name="earlier")
    waiting = (
        select(Job.tenant, func.min(Job.created_at).label("oldest"))
        .where(_claimable(device_class))
        .group_by(Job.tenant)
        .subquery("waiting")
    )
    busy = (
        select(held.tenant, func.count().label("jobs"))
        .where(held.status.in_(HELD))
        .group_by(held.tenant)
        .subquery("busy")
    )
    last_start = select(func.max(earlier.started_at)).where(earlier.tenant == waiting.c.tenant).scalar_subquery()
    held_now, allowed = func.coalesce(busy.c.jobs, 0), func.coalesce(Tenant.running_jobs, max_running)
    found = (
        select(waiting.c.tenant, allowed)
        .outerjoin(busy, busy.c.tenant == waiting.c.tenant)
        .outerjoin(Tenant, Tenant.name == waiting.c.tenant)
        .where(or_(allowed.is_(None), held_now < allowed))
        .order_by(held_now, last_start.nulls_first(), waiting.c.oldest, waiting.c.tenant)
    )
    return list(session.execute(found).tuples())


def oldest_job(tenant: str, device_class: str) -> ScalarSelect[str]:
    """The id of the tenant's job to claim next. Rows that another claim holds are passed over."""
    queued = aliased(Job, name="queued")
    return (
        select(queued.id)
        .where(queued.tenant == tenant, queued.status == JobStatus.QUEUED, queued.device.in_(("auto", device_class)))
        .order_by(queued.created_at, queued.id)
        .limit(1)
        .with_for_update(skip_locked=True, of=queued)
        .scalar_subquery()
    )


def queued_count(session: Session, device_class: str) -> int:
    """How many jobs wait that a worker of this class could take."""
    return session.scalar(select(func.count()).where(_claimable(device_class))) or 0


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


def _claimable(device_class: str) -> ColumnElement[bool]:
    return and_(Job.status == JobStatus.QUEUED, Job.device.in_(("auto", device_class)))
