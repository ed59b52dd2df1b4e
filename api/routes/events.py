"""The events of a job, and its log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from api.deps import CallerDep, Limit, ServiceDep
from api.errors import problems_of
from api.services import events, log
from models.errors import Code
from models.views import EventPage

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

EVENT_STREAM = "text/event-stream"


def wants_stream(accept: str | None) -> bool:
    """Whether an Accept header names event streams, and not with `q=0`."""
    for choice in (accept or "").lower().split(","):
        media_type, _, parameters = choice.strip().partition(";")
        if media_type.strip() == EVENT_STREAM:
            return parameters.replace(" ", "") not in ("q=0", "q=0.0")
    return False


@router.get(
    "/events",
    operation_id="list_events",
    response_model=EventPage,
    responses={
        200: {
            "description": "A page, or with `Accept: text/event-stream` every event behind `after` as it happens, "
            "until the terminal `status` event, which carries the whole job.",
            "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
        },
        204: {"description": "Stream only: the job has ended and every event was received"},
        **problems_of(Code.NOT_FOUND, Code.BAD_REQUEST),
    },
)
async def list_events(
    job_id: str,
    service: ServiceDep,
    caller: CallerDep,
    after: Annotated[int, Query(ge=0, le=events.MAX_EVENT_ID, description="Only events with greater ids.")] = 0,
    limit: Limit = 200,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    last_event_id: Annotated[str | None, Header(description="Stream only: resume behind this event.")] = None,
) -> Response:
    """What happened in a job, oldest first."""
    if not wants_stream(accept):
        page = await run_in_threadpool(events.page, service, caller.tenant, job_id, after, limit)
        return Response(page.model_dump_json(), media_type="application/json", headers={"Vary": "Accept"})
    last = events.resume_from(last_event_id, after)
    if await run_in_threadpool(events.is_over, service, caller.tenant, job_id, last):
        return Response(status_code=204)
    return StreamingResponse(
        events.stream(service, caller, job_id, last),
        media_type=EVENT_STREAM,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Vary": "Accept"},
    )


@router.get(
    "/log",
    operation_id="get_log",
    response_class=Response,
    responses={
        200: {"description": "The log so far", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems_of(Code.NOT_FOUND),
    },
)
def get_log(job_id: str, service: ServiceDep, caller: CallerDep) -> Response:
    """The engine's log, also of failed jobs."""
    return StreamingResponse(log.pieces(service, caller.tenant, job_id), media_type="text/plain")
