"""The events of a job, as a list and as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.auth import Caller, is_still_allowed
from api.deps import Service
from api.services.jobs import own_job, whole
from models.errors import Code, Failure, FieldProblem
from models.statuses import TERMINAL, JobStatus
from models.tables import Event, Job
from models.views import EventPage, StoredEventView

logger = logging.getLogger("modelpress.api")

KEEP_ALIVE_SECONDS = 15.0
KEY_SECONDS = 10.0
"""How long a stream may go on, quiet or not, without asking whether its key was revoked."""
EVENTS_A_READ = 500
RECONNECT_MS = 1000
MAX_EVENT_ID = 2**31 - 1


def page(service: Service, tenant: str, job_id: str, after: int, limit: int) -> EventPage:
    with service.database.read() as session:
        job = own_job(session, tenant, job_id)
        events = _read(session, job_id, after, limit + 1)
        shown, has_more = events[:limit], len(events) > limit
        return EventPage(
            data=[_view(event, _whole(service, session, job, event)) for event in shown],
            has_more=has_more,
            next_cursor=str(shown[-1].id) if has_more else None,
        )


def resume_from(last_event_id: str | None, after: int) -> int:
    """The event to go on behind. Raises `Failure` with `bad_request` for an id that no stream gave out."""
    if last_event_id is None or last_event_id == "":
        return after
    if not last_event_id.isascii() or not last_event_id.isdecimal() or len(last_event_id) > 10:
        problem = FieldProblem(pointer="/header/last-event-id", message="Send the id of the last event received")
        raise Failure(Code.BAD_REQUEST, "Last-Event-ID is not the id of an event.", problems=(problem,))
    return min(int(last_event_id), MAX_EVENT_ID)


def is_over(service: Service, tenant: str, job_id: str, after: int) -> bool:
    """Whether the job has ended and `after` is its last event: a stream would have nothing to say."""
    with service.database.read() as session:
        job = own_job(session, tenant, job_id)
        return JobStatus(job.status).is_terminal and after >= job.event_count


async def stream(service: Service, caller: Caller, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Server-sent events behind `after`, as they happen, until the terminal one, or the deletion of the job or key."""
    yield f"retry: {RECONNECT_MS}\n\n".encode()
    try:
        async for frame in _frames(service, caller, job_id, after):
            yield frame
    except Failure as failure:
        # The answer has begun, so it can only end: clients connect again and resume.
        logger.warning("the stream of %s ends early: %s", job_id, failure.message)


async def _frames(service: Service, caller: Caller, job_id: str, last: int) -> AsyncIterator[bytes]:
    asked = time.monotonic()
    async with service.watch.on(job_id) as feed:
        while not service.watch.closing:
            turn = feed.turn
            if time.monotonic() - asked >= KEY_SECONDS:
                if not await run_in_threadpool(is_still_allowed, service.database, caller):
                    return
                asked = time.monotonic()
            events: Sequence[Event] | None = feed.after(last)
            if events is None:
                events = await run_in_threadpool(_read_alone, service, job_id, last)
                if events is None:
                    return
            for event in events:
                last = event.id
                if _is_terminal(event):
                    yield await run_in_threadpool(_last_frame, service, caller.tenant, event)
                    return
                yield _frame(event, None)
            if len(events) == EVENTS_A_READ:
                continue
            if not await feed.wait(turn, KEEP_ALIVE_SECONDS):  # longer than KEY_SECONDS: each keep-alive asks
                yield b": keep-alive\n\n"
            await asyncio.sleep(0)


def _read(session: Session, job_id: str, after: int, limit: int) -> Sequence[Event]:
    return session.scalars(
        select(Event).where(Event.job_id == job_id, Event.id > after).order_by(Event.id).limit(limit)
    ).all()


def _read_alone(service: Service, job_id: str, after: int) -> Sequence[Event] | None:
    with service.database.read() as session:
        if session.scalar(select(Job.id).where(Job.id == job_id)) is None:
            return None
        return _read(session, job_id, after, EVENTS_A_READ)


def _last_frame(service: Service, tenant: str, event: Event) -> bytes:
    with service.database.read() as session:
        job = own_job(session, tenant, event.job_id)
        return _frame(event, _whole(service, session, job, event))


def _is_terminal(event: Event) -> bool:
    return event.data.get("type") == "status" and event.data.get("status") in TERMINAL


def _whole(service: Service, session: Session, job: Job, event: Event) -> dict[str, Any] | None:
    if not _is_terminal(event):
        return None
    return whole(service.settings, session, job).model_dump(mode="json")


def _view(event: Event, job: dict[str, Any] | None) -> StoredEventView:
    data = event.data if job is None else {**event.data, "job": job}
    return StoredEventView(id=event.id, at=event.at, attempt=event.attempt, data=data)


def _frame(event: Event, job: dict[str, Any] | None) -> bytes:
    text = _view(event, job).model_dump_json()
    return f"id: {event.id}\nevent: {event.data['type']}\ndata: {text}\n\n".encode()
