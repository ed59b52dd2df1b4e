"""Networks and data sets: accepting bytes, showing what inspection found, deleting."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.auth import Caller
from api.bodies import CHUNK_BYTES, in_chunks, refuse_encodings, refuse_forms, stream
from api.deps import Service
from api.digests import checksums_of_part, expected_sha256, mismatch
from api.pages import cursor_of, id_of
from api.services.first_bytes import refuse_by_first_bytes
from models import audit
from models.audit import Action
from models.blobs import Blob
from models.database import now
from models.errors import Code, Failure, FieldProblem, JobError
from models.ids import is_id
from models.inspection import DatasetInspection, NetworkInspection
from models.inspections import PREFIXES, UploadTable, add_upload, delete_upload, read_options_of
from models.quotas import lock_tenant, over_quota, refuse_over
from models.reading import ReadOptions
from models.statuses import UploadStatus
from models.tables import Dataset, Network
from models.views import DatasetPage, DatasetView, NetworkDetail, NetworkPage, NetworkView

Row = TypeVar("Row", Network, Dataset)

MAX_NAME_LENGTH = 255
NOUNS: dict[UploadTable, str] = {Network: "network", Dataset: "data set"}
UPLOADED: dict[UploadTable, Action] = {Network: Action.NETWORK_UPLOADED, Dataset: Action.DATASET_UPLOADED}
DELETED: dict[UploadTable, Action] = {Network: Action.NETWORK_DELETED, Dataset: Action.DATASET_DELETED}


def clean_name(name: str | None) -> str:
    """Fit to be stored and shown: at most 255 characters, control and direction characters replaced by U+FFFD."""
    shown = "".join("\ufffd" if unicodedata.category(character)[0] == "C" else character for character in name or "")
    return shown[:MAX_NAME_LENGTH] or "unnamed"


async def accept(
    service: Service,
    request: Request,
    table: UploadTable,
    caller: Caller,
    name: str | None,
    limit_bytes: int,
    read_options: ReadOptions | None = None,
) -> Network | Dataset:
    """Store the request's body, add its row, and nudge a worker to inspect it.

    Raises `Failure` as `bodies.stream` does, with `disk_full`, `quota_exceeded` and `checksum_mismatch`, and with what
    the first bytes show. No row is added then.

    The same bytes again are another row, inspected anew, that shares the stored bytes and takes no more of the quota.
    """
    refuse_forms(request)
    refuse_encodings(request)
    sha256, checksums = expected_sha256(request.headers), checksums_of_part(request.headers)
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isdecimal() and int(declared) <= limit_bytes else None
    settings = service.settings
    left = await asyncio.to_thread(_quota_left, service, caller, expected or 0)
    limit = limit_bytes if expected is not None else min(limit_bytes, left)
    pieces = stream(request, limit, settings.body_idle_seconds, settings.body_minimum_bytes_per_second)
    writer = await asyncio.to_thread(service.blobs.writer, expected_bytes=expected)
    with writer:

        def write(chunk: bytes) -> None:
            writer.write(chunk)
            for checksum in checksums:
                checksum.update(chunk)

        try:
            async with aclosing(pieces), aclosing(in_chunks(pieces)) as chunks:
                await _write_all(write, chunks, table, expected, clean_name(name), read_options)
        except Failure as failure:
            if failure.code is Code.TOO_LARGE and limit < limit_bytes:
                raise over_quota(caller.limits.stored_bytes) from failure
            raise
        for checksum in checksums:
            checksum.check()
        if sha256 not in (None, writer.sha256()):
            raise mismatch("Repr-Digest")
        blob = await asyncio.to_thread(writer.publish)
    row = await asyncio.to_thread(_add, service, table, caller, clean_name(name), blob, read_options)
    service.nudger.upload_waits()
    return row


async def _write_all(
    write: Callable[[bytes], None],
    chunks: AsyncGenerator[bytes],
    table: UploadTable,
    expected: int | None,
    name: str,
    read_options: ReadOptions | None,
) -> None:
    """Receives a chunk while the one before is hashed and written in another thread."""
    writing: asyncio.Task[None] | None = None
    try:
        async for chunk in chunks:
            if writing is None:
                size_bytes = len(chunk) if len(chunk) < CHUNK_BYTES else expected
                refuse_by_first_bytes(table, chunk, size_bytes, name, read_options)
            else:
                await writing
            writing = asyncio.create_task(asyncio.to_thread(write, chunk))
        if writing is None:
            refuse_by_first_bytes(table, b"", 0, name, read_options)
    finally:
        # The writer's file is closed behind this: never while its thread still writes.
        if writing is not None:
            await writing


def _quota_left(service: Service, caller: Caller, more_bytes: int) -> int:
    with service.database.read() as session:
        return refuse_over(session, caller.tenant, caller.limits.stored_bytes, now(session), more_bytes=more_bytes)


def _add(
    service: Service, table: UploadTable, caller: Caller, name: str, blob: Blob, read_options: ReadOptions | None
) -> Network | Dataset:
    tenant = caller.tenant
    with service.database.transaction() as session:
        lock_tenant(session, tenant)
        moment = now(session)
        row = add_upload(session, table, tenant=tenant, name=name, blob=blob, now=moment, read_options=read_options)
        refuse_over(session, tenant, caller.limits.stored_bytes, moment)
        audit.record(session, caller, UPLOADED[table], row.id, moment)
        return row


def own_upload(session: Session, table: UploadTable, tenant: str, upload_id: str, pointer: str | None = None) -> Any:
    """Raises `Failure` with `not_found`, the same for an unknown id, a malformed one and another tenant's."""
    row = None
    if is_id(upload_id, PREFIXES[table]):
        row = session.scalar(select(table).where(table.id == upload_id, table.tenant == tenant))
    if row is None:
        problems = (FieldProblem(pointer=pointer, message=f"There is no such {NOUNS[table]}"),) if pointer else ()
        raise Failure(Code.NOT_FOUND, f"There is no such {NOUNS[table]}.", problems=problems)
    return row


def _ready(session: Session, table: UploadTable, tenant: str, upload_id: str, pointer: str, refusal: Code) -> Any:
    row = own_upload(session, table, tenant, upload_id, pointer)
    if row.status == UploadStatus.INSPECTING:
        problem = FieldProblem(pointer=pointer, message="It is still being inspected")
        raise Failure(Code.NOT_READY, f"The {NOUNS[table]} is still being inspected.", problems=(problem,))
    if row.status == UploadStatus.REJECTED:
        reason = JobError(**row.error)
        problem = FieldProblem(pointer=pointer, message=f"{reason.message} {reason.hint}")
        raise Failure(refusal, f"The {NOUNS[table]} was rejected: {reason.message}", problems=(problem,))
    return row.inspection


def ready_network(session: Session, tenant: str, network_id: str, pointer: str) -> NetworkInspection:
    """What inspection found. Raises `Failure` with `not_found`, `not_ready` or `network_rejected`, at `pointer`."""
    found = _ready(session, Network, tenant, network_id, pointer, Code.NETWORK_REJECTED)
    return NetworkInspection.model_validate(found)


def ready_dataset(session: Session, tenant: str, dataset_id: str, pointer: str) -> DatasetInspection:
    """What inspection found. Raises `Failure` with `not_found`, `not_ready` or `dataset_bad`, at `pointer`."""
    found = _ready(session, Dataset, tenant, dataset_id, pointer, Code.DATASET_BAD)
    return DatasetInspection.model_validate(found)


def _fields(row: Network | Dataset, shown: type[NetworkView] | type[DatasetView]) -> dict[str, Any]:
    found = row.inspection or {}
    return {
        "id": row.id,
        "name": row.name,
        "status": row.status,
        "size_bytes": row.size_bytes,
        "sha256": row.sha256,
        "error": row.error,
        "created_at": row.created_at,
        **{key: value for key, value in found.items() if key in shown.model_fields},
    }


def network_view(row: Network) -> NetworkView:
    return NetworkView(read_options=read_options_of(row), **_fields(row, NetworkView))


def network_detail(row: Network) -> NetworkDetail:
    return NetworkDetail(read_options=read_options_of(row), **_fields(row, NetworkDetail))


def dataset_view(row: Dataset) -> DatasetView:
    return DatasetView(**_fields(row, DatasetView))


def get(service: Service, table: UploadTable, tenant: str, upload_id: str) -> Any:
    with service.database.read() as session:
        return own_upload(session, table, tenant, upload_id)


def _page(
    service: Service, table: type[Row], tenant: str, limit: int, after: str | None
) -> tuple[list[Row], bool, str | None]:
    behind = id_of(after, PREFIXES[table])
    query = select(table).where(table.tenant == tenant).order_by(table.id.desc()).limit(limit + 1)
    if behind is not None:
        query = query.where(table.id < behind)
    with service.database.read() as session:
        rows = list(session.scalars(query))
    has_more = len(rows) > limit
    return rows[:limit], has_more, cursor_of(rows[limit - 1].id) if has_more else None


def network_page(service: Service, tenant: str, limit: int, after: str | None) -> NetworkPage:
    rows, has_more, cursor = _page(service, Network, tenant, limit, after)
    return NetworkPage(data=[network_view(row) for row in rows], has_more=has_more, next_cursor=cursor)


def dataset_page(service: Service, tenant: str, limit: int, after: str | None) -> DatasetPage:
    rows, has_more, cursor = _page(service, Dataset, tenant, limit, after)
    return DatasetPage(data=[dataset_view(row) for row in rows], has_more=has_more, next_cursor=cursor)


def remove(service: Service, table: UploadTable, caller: Caller, upload_id: str) -> None:
    """Raises `Failure` with `in_use` while a job names it."""
    with service.database.transaction() as session:
        if not is_id(upload_id, PREFIXES[table]) or not delete_upload(session, table, caller.tenant, upload_id):
            raise Failure(Code.NOT_FOUND, f"There is no such {NOUNS[table]}.")
        audit.record(session, caller, DELETED[table], upload_id, now(session))
