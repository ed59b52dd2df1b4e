"""From errors to HTTP: one table of statuses, and RFC 9457 problem documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from api.pointers import field_problems
from models.errors import HINTS, Code, Failure, FieldProblem

CHECKSUM_MISMATCH = 460
"""From the tus protocol; the registry of HTTP statuses does not have it."""

STATUSES: dict[Code, int] = {
    Code.NETWORK_REJECTED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNSUPPORTED_OP: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.NOT_TRAINABLE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.DATASET_BAD: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.DATASET_MISMATCH: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.NOTHING_TO_PRUNE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.OUT_OF_GPU_MEMORY: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.OUT_OF_MEMORY: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.DISK_FULL: HTTPStatus.INSUFFICIENT_STORAGE,
    Code.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
    Code.STALLED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NAN_LOSS: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.VERIFICATION_FAILED: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.ENGINE_CRASHED: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.WORKER_LOST: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.NO_SUCH_DEVICE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNSUPPORTED_HERE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.REQUIREMENT_MISSED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.FILE_DAMAGED: HTTPStatus.GONE,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.EMPTY_FILE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNKNOWN_FORMAT: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.FORMAT_MISMATCH: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.UNSAFE_PICKLE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.TORCHSCRIPT_NOT_SUPPORTED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.MODULE_PICKLE_NOT_SUPPORTED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.LEGACY_FORMAT: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.COMPRESSED_RECORD: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.SPARSE_NOT_SUPPORTED: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.LOGICAL_SIZE_EXCEEDS_STORAGE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.TOO_DEEP: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.BAD_ARCHIVE: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.USE_RAW_BODY: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.BODY_TIMEOUT: HTTPStatus.REQUEST_TIMEOUT,
    Code.QUOTA_EXCEEDED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.CHECKSUM_MISMATCH: CHECKSUM_MISMATCH,
    Code.TOO_MANY_UPLOADS: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNSUPPORTED_TUS_VERSION: HTTPStatus.PRECONDITION_FAILED,
    Code.WRONG_OFFSET: HTTPStatus.CONFLICT,
    Code.INCONSISTENT_UPLOAD_LENGTH: HTTPStatus.BAD_REQUEST,
    Code.UPLOAD_INCOMPLETE: HTTPStatus.CONFLICT,
    Code.UPLOAD_COMPLETE: HTTPStatus.FORBIDDEN,
    Code.UPLOAD_INVALID: HTTPStatus.GONE,
    Code.UPLOAD_EXPIRED: HTTPStatus.GONE,
    Code.UPLOAD_BUSY: HTTPStatus.LOCKED,
    Code.BAD_REQUEST: HTTPStatus.BAD_REQUEST,
    Code.HEADERS_TOO_LARGE: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    Code.INVALID_REQUEST: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.INVALID_SPEC: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.NO_LAYER_MATCHES: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.TOO_MANY_JOBS: HTTPStatus.TOO_MANY_REQUESTS,
    Code.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNAUTHORIZED: HTTPStatus.UNAUTHORIZED,
    Code.KEY_EXPIRED: HTTPStatus.UNAUTHORIZED,
    Code.FORBIDDEN: HTTPStatus.FORBIDDEN,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    Code.UNSUPPORTED_MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.RANGE_NOT_SATISFIABLE: HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
    Code.NOT_READY: HTTPStatus.CONFLICT,
    Code.IN_USE: HTTPStatus.CONFLICT,
    Code.ALREADY_FINISHED: HTTPStatus.CONFLICT,
    Code.IDEMPOTENCY_MISMATCH: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.IDEMPOTENCY_IN_FLIGHT: HTTPStatus.CONFLICT,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The HTTP status of each code; a test holds that every code has one."""

HEADERS: dict[Code, dict[str, str]] = {
    Code.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    Code.KEY_EXPIRED: {"WWW-Authenticate": 'Bearer error="invalid_token"'},
    Code.NOT_READY: {"Retry-After": "2"},
    Code.IDEMPOTENCY_IN_FLIGHT: {"Retry-After": "1"},
    Code.TOO_MANY_UPLOADS: {"Retry-After": "10"},
    Code.TOO_MANY_JOBS: {"Retry-After": "10"},
    Code.UNSUPPORTED_TUS_VERSION: {"Tus-Version": "1.0.0"},
    Code.UPLOAD_BUSY: {"Retry-After": "1"},
    Code.UNAVAILABLE: {"Retry-After": "5"},
    Code.WORKER_LOST: {"Retry-After": "5"},
}
"""Headers that a code always brings."""

_CODES_OF_STATUSES: dict[int, Code] = {
    HTTPStatus.NOT_FOUND: Code.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: Code.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Code.TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: Code.UNSUPPORTED_MEDIA_TYPE,
}
"""Codes for what Starlette's router refuses before a route runs; everything else it refuses is a bad request."""


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="forbid")

    type: str = Field(description="A URN for the code.", examples=["urn:modelpress:problem:invalid_spec"])
    title: str = Field(description="The HTTP status in words.")
    status: int
    detail: str = Field(description="What is wrong, for people.")
    code: Code
    hint: str = Field(description="What to do about it.")
    where: str | None = Field(default=None, description="The layer, file, field or status concerned.")
    errors: list[FieldProblem] = Field(default=[], description="Each wrong field, as a JSON pointer into the body.")
    request_id: str | None = None


class HeaderedFailure(Failure):
    """A failure whose answer carries headers of its own."""

    def __init__(self, code: Code, message: str, headers: Mapping[str, str], where: str | None = None) -> None:
        super().__init__(code, message, where=where)
        self.headers = dict(headers)


def request_id_of(request: Request) -> str | None:
    request_id: str | None = getattr(request.state, "request_id", None)
    return request_id


def problem_response(
    request: Request,
    code: Code,
    detail: str,
    *,
    where: str | None = None,
    errors: Sequence[FieldProblem] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    status = STATUSES[code]
    problem = Problem(
        type=f"urn:modelpress:problem:{code}",
        title="Checksum Mismatch" if status == CHECKSUM_MISMATCH else HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        code=code,
        hint=HINTS[code],
        where=where,
        errors=list(errors),
        request_id=request_id_of(request),
    )
    return JSONResponse(
        problem.model_dump(mode="json"),
        status_code=status,
        headers={**HEADERS.get(code, {}), **(headers or {})},
        media_type="application/problem+json",
    )


async def _on_failure(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, Failure)
    headers = failure.headers if isinstance(failure, HeaderedFailure) else None
    return problem_response(
        request, failure.code, failure.message, where=failure.where, errors=failure.problems, headers=headers
    )


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = field_problems(error.errors(), error.body)
    return problem_response(request, Code.INVALID_REQUEST, summary(problems), errors=problems)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES_OF_STATUSES.get(error.status_code, Code.BAD_REQUEST)
    return problem_response(request, code, str(error.detail), headers=error.headers)


def summary(problems: Sequence[FieldProblem]) -> str:
    """One sentence over all problems: the first in full, the count of the rest."""
    if not problems:
        return "The request is not valid."
    first = f"{problems[0].pointer or '/'}: {problems[0].message}"
    return first if len(problems) == 1 else f"{first} (and {len(problems) - 1} more)"


def install(app: FastAPI) -> None:
    app.add_exception_handler(Failure, _on_failure)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def problems_of(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for the codes a route can answer with, besides those every route has."""
    responses: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        response = responses.setdefault(
            int(STATUSES[code]),
            {"model": Problem, "content": {"application/problem+json": {"schema": {"$ref": _PROBLEM}}}},
        )
        known = response.get("description")
        response["description"] = f"{known}, `{code}`" if known else f"`{code}`"
    return responses


_PROBLEM = "#/components/schemas/Problem"
