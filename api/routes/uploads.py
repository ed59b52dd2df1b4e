"""Resumable uploads: tus 1.0 (tus.io/protocols/resumable-upload), core, creation, checksum, expiration, termination."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from api import tus
from api.deps import CallerDep, ServiceDep
from api.errors import problems_of
from api.services import resumable
from models.errors import Code

router = APIRouter(prefix="/uploads", tags=["uploads"])


def _answers(status: int, description: str, *headers: str) -> dict[int | str, dict[str, Any]]:
    shown = {name: {"schema": {"type": "string"}} for name in ("Tus-Resumable", *headers)}
    return {status: {"description": description, "headers": shown}}


_GONE = (Code.NOT_FOUND, Code.UPLOAD_EXPIRED, Code.UPLOAD_INVALID, Code.UNSUPPORTED_TUS_VERSION)
_CREATE = {
    **_answers(201, "Created, with offset 0", "Location", "Upload-Expires"),
    **problems_of(
        Code.BAD_REQUEST,
        Code.UNSUPPORTED_TUS_VERSION,
        Code.TOO_LARGE,
        Code.QUOTA_EXCEEDED,
        Code.TOO_MANY_UPLOADS,
        Code.DISK_FULL,
    ),
}
_HEAD = {
    **_answers(200, "How far it is", "Upload-Offset", "Upload-Length", "Upload-Expires", "Upload-Metadata"),
    **problems_of(*_GONE),
}
_PATCH = {
    **_answers(204, "Appended", "Upload-Offset", "Upload-Expires"),
    **problems_of(
        *_GONE,
        Code.BAD_REQUEST,
        Code.INCONSISTENT_UPLOAD_LENGTH,
        Code.UPLOAD_COMPLETE,
        Code.BODY_TIMEOUT,
        Code.WRONG_OFFSET,
        Code.TOO_LARGE,
        Code.UNSUPPORTED_MEDIA_TYPE,
        Code.UPLOAD_BUSY,
        Code.CHECKSUM_MISMATCH,
        Code.DISK_FULL,
    ),
}
_PART: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The bytes from the offset on: all of the rest, or a part of it.",
        "content": {tus.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.options("/{upload_id}", include_in_schema=False)
@router.options(
    "",
    operation_id="discover_uploads",
    status_code=204,
    responses=_answers(
        204, "What is spoken here", "Tus-Version", "Tus-Extension", "Tus-Max-Size", "Tus-Checksum-Algorithm"
    ),
)
def discover_uploads(service: ServiceDep, caller: CallerDep) -> Response:
    """Which versions and extensions of tus are spoken, and how long a file may be."""
    return Response(status_code=204, headers=tus.discovery(resumable.max_size_bytes(service)))


@router.post("", operation_id="create_upload", status_code=201, response_class=Response, responses=_CREATE)
def create_upload(
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    version: tus.TusResumable = None,
    length: tus.UploadLength = None,
    metadata: tus.UploadMetadata = None,
    digest: tus.ReprDigest = None,
) -> Response:
    """Begin a file of `Upload-Length` bytes. Send them by `PATCH`, then use it: `POST /models?upload=`."""
    tus.refuse_other_versions(version)
    row = resumable.create(service, request, caller, length, metadata)
    headers = {"Location": f"/uploads/{row.id}", "Upload-Expires": tus.http_date(row.expires_at)}
    return Response(status_code=201, headers=headers)


@router.head("/{upload_id}", operation_id="get_upload_offset", response_class=Response, responses=_HEAD)
async def get_upload_offset(
    upload_id: str, service: ServiceDep, caller: CallerDep, version: tus.TusResumable = None
) -> Response:
    """How many bytes have arrived and stay. A `PATCH` of this upload to which none come ends."""
    tus.refuse_other_versions(version)
    found = await resumable.offset(service, caller.tenant, upload_id)
    headers = {
        "Upload-Offset": str(found.offset),
        "Upload-Length": str(found.row.size_bytes),
        "Upload-Expires": tus.http_date(found.row.expires_at),
    }
    if found.row.upload_metadata is not None:
        headers["Upload-Metadata"] = found.row.upload_metadata
    return Response(headers=headers)


@router.patch(
    "/{upload_id}",
    operation_id="append_to_upload",
    status_code=204,
    response_class=Response,
    responses=_PATCH,
    openapi_extra=_PART,
)
async def append_to_upload(
    upload_id: str,
    request: Request,
    service: ServiceDep,
    caller: CallerDep,
    version: tus.TusResumable = None,
    offset: tus.UploadOffset = None,
    length: tus.UploadLength = None,
    checksum: tus.UploadChecksum = None,
    content_digest: tus.ContentDigest = None,
    digest: tus.ReprDigest = None,
) -> Response:
    """Append the body. When it breaks off, what has arrived stays, unless a checksum was to be seen over all of it."""
    tus.refuse_other_versions(version)
    found = await resumable.receive(service, request, caller.tenant, upload_id)
    headers = {"Upload-Offset": str(found.offset), "Upload-Expires": tus.http_date(found.row.expires_at)}
    return Response(status_code=204, headers=headers)


@router.delete(
    "/{upload_id}",
    operation_id="delete_upload",
    status_code=204,
    response_class=Response,
    responses={**_answers(204, "Gone"), **problems_of(*_GONE, Code.UPLOAD_BUSY)},
)
async def delete_upload(
    upload_id: str, service: ServiceDep, caller: CallerDep, version: tus.TusResumable = None
) -> Response:
    """End an upload and drop its bytes. A network or data set that it was turned into stays."""
    tus.refuse_other_versions(version)
    await resumable.terminate(service, caller, upload_id)
    return Response(status_code=204)
