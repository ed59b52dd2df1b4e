"""What a job gives back: files and the report."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from api.artifact_response import ArtifactResponse, matches, not_modified
from api.deps import CallerDep, ServiceDep
from api.errors import problems_of
from api.report_response import PAGE, report_response
from api.services import artifacts, bundle, jobs
from models.audit import Action
from models.errors import Code
from models.report import Report
from models.views import ArtifactList

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


def _download(media_type: str) -> dict[int | str, dict[str, Any]]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    names = ("ETag", "Repr-Digest", "Content-Disposition", "Accept-Ranges")
    headers = {name: {"schema": {"type": "string"}} for name in names}
    return {
        200: {"description": "The file", "content": content, "headers": headers},
        206: {"description": "The range asked for", "content": content},
        304: {"description": "Still as `If-None-Match` says"},
        **problems_of(Code.NOT_FOUND, Code.NOT_READY, Code.FILE_DAMAGED, Code.RANGE_NOT_SATISFIABLE),
    }


@router.get("/artifacts", operation_id="list_artifacts", responses=problems_of(Code.NOT_FOUND))
def list_artifacts(job_id: str, service: ServiceDep, caller: CallerDep) -> ArtifactList:
    """The files of a job. Those marked `partial` are of a job that did not succeed."""
    return artifacts.listing(service, caller.tenant, job_id)


@router.head("/artifacts/{name}", include_in_schema=False)
@router.get("/artifacts/{name}", operation_id="download_artifact", response_class=Response, responses=_download("*/*"))
def download_artifact(
    request: Request,
    job_id: str,
    name: str,
    service: ServiceDep,
    caller: CallerDep,
    if_none_match: Annotated[str | None, Header()] = None,
    range_: Annotated[str | None, Header(alias="range", description="One range of bytes.")] = None,
    if_range: Annotated[str | None, Header(description="The `ETag` for which `Range` is meant.")] = None,
) -> Response:
    """One file. `ETag` is its SHA-256; one `Range` is honoured, several get the whole file."""
    artifact = artifacts.find(service, caller.tenant, job_id, name)
    if if_none_match is not None and matches(artifact.sha256, if_none_match):
        return not_modified(name, artifact.sha256)
    if request.method != "HEAD":
        artifacts.leave_trace(service, caller, Action.ARTIFACT_DOWNLOADED, f"{job_id}/{name}")
    found = artifacts.download(service, artifact)
    return ArtifactResponse(
        found.file,
        found.stored.size_bytes,
        artifact.sha256,
        name=name,
        content_type=artifact.content_type,
        range_=range_,
        if_range=if_range,
    )


@router.head("/bundle", include_in_schema=False)
@router.get(
    "/bundle", operation_id="download_bundle", response_class=Response, responses=_download("application/x-tar")
)
def download_bundle(
    request: Request,
    job_id: str,
    service: ServiceDep,
    caller: CallerDep,
    if_none_match: Annotated[str | None, Header()] = None,
    range_: Annotated[str | None, Header(alias="range", description="One range of bytes.")] = None,
    if_range: Annotated[str | None, Header(description="The `ETag` for which `Range` is meant.")] = None,
) -> Response:
    """Every file of an ended job as one tar, with a list of their hashes, in a folder named after the job. The same
    files give the same bytes; `ETag` stands for them and `Range` works as for one file."""
    found = bundle.plan(service, caller.tenant, job_id)
    if if_none_match is not None and matches(found.tag, if_none_match):
        return not_modified(found.name, found.tag, is_digest=False)
    if request.method != "HEAD":
        artifacts.leave_trace(service, caller, Action.BUNDLE_DOWNLOADED, job_id)
    return ArtifactResponse(
        bundle.open_bundle(service, found),
        found.size_bytes,
        found.tag,
        name=found.name,
        content_type="application/x-tar",
        range_=range_,
        if_range=if_range,
        is_digest=False,
    )


@router.get(
    "/report",
    operation_id="get_report",
    response_model=Report,
    responses={
        200: {
            "description": "The report; with `Accept: text/html` one page with tables and drawings, whole in itself.",
            "content": {PAGE: {"schema": {"type": "string"}}},
        },
        304: {"description": "Still as `If-None-Match` says"},
        **problems_of(Code.NOT_FOUND, Code.NOT_READY),
    },
)
def get_report(
    job_id: str,
    service: ServiceDep,
    caller: CallerDep,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """The numbers, before and after, each measured on the file that is downloaded."""
    report, spec = jobs.report(service, caller.tenant, job_id)
    return report_response(report, spec, accept, if_none_match)
