"""Jobs: make, show, list, end, repeat, delete."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from api.deps import After, CallerDep, Limit, ServiceDep, Wait
from api.errors import problems_of
from api.services import jobs
from api.strict_json import json_object
from api.waiting import look_until
from models.errors import Code
from models.statuses import JobStatus
from models.views import DryRun, JobPage, JobView

router = APIRouter(prefix="/jobs", tags=["jobs"])

IdempotencyKey = Annotated[
    str | None,
    Header(description="1 to 255 printable characters; the same key and body give the same job for 24 hours."),
]
JsonObject = Annotated[dict[str, Any], Depends(json_object)]
_BODY_PROBLEMS = (
    Code.UNSUPPORTED_MEDIA_TYPE,
    Code.TOO_LARGE,
    Code.INVALID_SPEC,
    Code.NO_SUCH_DEVICE,
    Code.UNSUPPORTED_HERE,
)
_SUBMIT_PROBLEMS = (
    *_BODY_PROBLEMS,
    Code.NOT_FOUND,
    Code.NOT_READY,
    Code.NETWORK_REJECTED,
    Code.IDEMPOTENCY_MISMATCH,
    Code.IDEMPOTENCY_IN_FLIGHT,
    Code.BAD_REQUEST,
    Code.TOO_MANY_JOBS,
)
_MADE = {"description": "Queued", "headers": {"Location": {"schema": {"type": "string"}}}}


def _body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    media = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": media}}


_EXAMPLE = {
    "model": "net_01k0example0000000000000000",
    "dataset": "dat_01k0example0000000000000000",
    "preset": "balanced",
}


def _made(submitted: jobs.Submitted) -> Response:
    headers = {"Location": submitted.view.urls.self}
    if submitted.replayed:
        headers["Idempotent-Replayed"] = "true"
    return _json(submitted.view.model_dump_json(), 202, headers)


def _json(body: str, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status_code=status_code, headers=headers, media_type="application/json")


@router.post(
    "",
    operation_id="create_job",
    status_code=202,
    response_model=JobView,
    responses={
        200: {"model": DryRun, "description": "`dry_run`: nothing is queued"},
        202: _MADE,
        **problems_of(*_SUBMIT_PROBLEMS),
    },
    openapi_extra=_body({"$ref": "#/components/schemas/Spec"}, _EXAMPLE),
)
async def create_job(
    service: ServiceDep,
    caller: CallerDep,
    document: JsonObject,
    idempotency_key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Check everything, fill in every default, queue nothing.")] = False,
) -> Response:
    """Queue a job: compress a network by the steps of a spec."""
    if dry_run:
        shown = await run_in_threadpool(jobs.dry_run, service, caller.tenant, document)
        return _json(shown.model_dump_json())
    return _made(await run_in_threadpool(jobs.submit, service, caller, document, idempotency_key))


@router.get("", operation_id="list_jobs", responses=problems_of(Code.BAD_REQUEST))
def list_jobs(
    service: ServiceDep,
    caller: CallerDep,
    status: Annotated[list[JobStatus] | None, Query(max_length=10, description="Only these; may be repeated.")] = None,
    limit: Limit = 50,
    after: After = None,
) -> JobPage:
    """Your jobs, newest first."""
    return jobs.page(service, caller.tenant, status or (), limit, after)


@router.get(
    "/{job_id}",
    operation_id="get_job",
    response_model=JobView,
    responses={304: {"description": "Still as `If-None-Match` says"}, **problems_of(Code.NOT_FOUND)},
)
async def get_job(
    job_id: str,
    service: ServiceDep,
    caller: CallerDep,
    wait: Wait = 0,
    if_none_match: Annotated[str | None, Header(description="An `ETag`: with `wait`, what counts as change.")] = None,
) -> Response:
    """One job. With `wait`, the answer comes with the next change, or when the job has ended."""
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")} if if_none_match else None
    seen: set[str] = set() if known is None else known

    def look() -> tuple[JobView, str, str]:
        view = jobs.get(service, caller.tenant, job_id)
        body = view.model_dump_json()
        return view, body, f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'

    def is_enough(found: tuple[JobView, str, str]) -> bool:
        view, _, tag = found
        if not seen:
            seen.add(tag)
        return view.status.is_terminal or tag not in seen

    view, body, tag = await look_until(service.watch, job_id, look, is_enough, wait)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if not view.status.is_terminal:
        headers["Retry-After"] = str(_retry_after_seconds(view))
    if known is not None and (tag in known or "*" in known):
        return Response(status_code=304, headers=headers)
    return _json(body, headers=headers)


def _retry_after_seconds(view: JobView) -> int:
    """Often enough to see progress, seldom enough for a job of hours."""
    remaining = view.progress.eta_seconds
    return 2 if remaining is None else min(max(round(remaining / 20), 1), 15)


@router.post(
    "/{job_id}/cancel",
    operation_id="cancel_job",
    status_code=202,
    responses=problems_of(Code.NOT_FOUND, Code.ALREADY_FINISHED),
)
def cancel_job(job_id: str, service: ServiceDep, caller: CallerDep) -> JobView:
    """End a job. A queued one is cancelled at once; a running one when its process is gone."""
    return jobs.cancel(service, caller, job_id)


@router.post(
    "/{job_id}/clone",
    operation_id="clone_job",
    status_code=202,
    response_model=JobView,
    responses={202: _MADE, **problems_of(*_SUBMIT_PROBLEMS)},
    openapi_extra=_body({"type": "object"}, {"seed": 1}),
)
async def clone_job(
    job_id: str, service: ServiceDep, caller: CallerDep, overrides: JsonObject, idempotency_key: IdempotencyKey = None
) -> Response:
    """A new job from the spec of this one. The body is a JSON merge patch (RFC 7396) on that spec: objects merge, all
    else replaces, `null` removes; `steps` and `preset` replace each other. `{}` repeats the job. Steps at the start
    that are the same are not run again."""
    return _made(await run_in_threadpool(jobs.clone, service, caller, job_id, overrides, idempotency_key))


@router.delete(
    "/{job_id}", operation_id="delete_job", status_code=204, responses=problems_of(Code.NOT_FOUND, Code.IN_USE)
)
def delete_job(job_id: str, service: ServiceDep, caller: CallerDep) -> None:
    """Delete an ended job with its events, log and files."""
    jobs.remove(service, caller, job_id)
