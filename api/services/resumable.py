"""Resumable uploads: create, receive parts, tell the offset, end; and turn a whole one into a network or a data set."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Request

from api import tus
from api.auth import Caller
from api.bodies import Disconnected, refuse_encodings, stream
from api.deps import Service
from api.digests import checksums_of_part, expected_sha256, mismatch
from api.errors import HeaderedFailure
from api.services.uploads import clean_name
from api.transfers import Transfer
from models import audit, quotas, uploads
from models.audit import Action
from models.database import now
from models.errors import Code, Failure
from models.statuses import TransferStatus
from models.tables import ResumableUpload

RENEW_SECONDS = 60.0
"""An upload's end is moved at most this often."""


@dataclass(frozen=True)
class Offset:
    """What `HEAD` tells. `offset` counts the bytes that stay whatever happens to this process."""

    row: ResumableUpload
    offset: int


def max_size_bytes(service: Service) -> int:
    return max(service.settings.max_model_bytes, service.settings.max_dataset_bytes)


def create(
    service: Service, request: Request, caller: Caller, length: str | None, metadata: str | None
) -> ResumableUpload:
    """Reserve the bytes. Raises `Failure` with `bad_request`, `too_large`, `too_many_uploads`, `quota_exceeded` and
    `disk_full`."""
    if tus.has_body(request):
        raise Failure(Code.BAD_REQUEST, "Bytes come by PATCH; the request that creates an upload has no body.")
    if "upload-defer-length" in request.headers or "upload-concat" in request.headers:
        raise Failure(
            Code.BAD_REQUEST, "Upload-Defer-Length and Upload-Concat are not spoken here: send Upload-Length."
        )
    size_bytes, limit = tus.number("Upload-Length", length), max_size_bytes(service)
    if size_bytes > limit:
        raise HeaderedFailure(
            Code.TOO_LARGE,
            f"Upload-Length {size_bytes} is more than the {limit} bytes allowed here.",
            headers={"Tus-Max-Size": str(limit)},
        )
    name = clean_name(tus.name_in(metadata))
    sha256 = expected_sha256(request.headers)
    service.transfers.incoming.refuse_without_room(size_bytes)
    tenant, limits = caller.tenant, caller.limits
    with service.database.transaction() as session:
        quotas.lock_tenant(session, tenant)
        moment = now(session)
        quotas.refuse_one_more_upload(session, tenant, limits.open_uploads, moment)
        quotas.refuse_over(session, tenant, limits.stored_bytes, moment, more_bytes=size_bytes)
        row = uploads.create(
            session,
            tenant=tenant,
            name=name,
            upload_metadata=metadata,
            size_bytes=size_bytes,
            expected_sha256=sha256,
            expires_at=_end_of_rest(service, moment),
            now=moment,
        )
        audit.record(session, caller, Action.UPLOAD_CREATED, row.id, moment)
        return row


async def offset(service: Service, tenant: str, upload_id: str) -> Offset:
    """How much is there. A request of this process to which no bytes come any more is ended first."""
    await asyncio.to_thread(_find, service, tenant, upload_id)
    await service.transfers.settle(upload_id)
    return await asyncio.to_thread(_offset, service, tenant, upload_id)


async def receive(service: Service, request: Request, tenant: str, upload_id: str) -> Offset:
    """Append the request's body.

    Raises `Failure` as the protocol says, and as `bodies.stream` does; what came before stays where no checksum spoke
    of it. Nothing is written when the offset is another one.
    """
    _refuse_complete(await asyncio.to_thread(_find, service, tenant, upload_id))
    _refuse_other_bodies(request)
    checksums = checksums_of_part(request.headers)
    async with service.transfers.hold(upload_id) as transfer:
        row = await asyncio.to_thread(_begin, service, request, tenant, upload_id, transfer, bool(checksums))
        left = row.size_bytes - transfer.file.size_bytes
        settings = service.settings
        pieces = stream(request, left, settings.body_idle_seconds, settings.body_minimum_bytes_per_second)
        try:
            async with _renewing(service, upload_id), aclosing(pieces):
                await transfer.receive(pieces, checksums)
        except (Disconnected, Failure) as broken:
            if isinstance(broken, Failure) and broken.code is Code.TOO_LARGE:
                await asyncio.to_thread(_drop, service, row, transfer)
            else:
                with suppress(Failure):  # the database is away: what is told is why the part broke off
                    await asyncio.to_thread(_renew, service, row)
            raise
        return await asyncio.to_thread(_end, service, row, transfer)


async def terminate(service: Service, caller: Caller, upload_id: str) -> None:
    """Forget an upload and its bytes; what it was turned into stays."""
    await asyncio.to_thread(_find, service, caller.tenant, upload_id)
    async with service.transfers.hold(upload_id) as transfer:
        await asyncio.to_thread(_remove, service, caller, upload_id, transfer)
    service.transfers.forget(upload_id)


def settled(service: Service, tenant: str, upload_id: str, transfer: Transfer) -> ResumableUpload:
    """The row of a held upload once it agrees with its file. Raises `Failure` as `uploads.find` does.

    Bytes whose checksum a dead process never came to see are dropped; an upload whose last byte arrived just before
    the process died is completed."""
    row = _find(service, tenant, upload_id)
    if row.status == TransferStatus.OPEN:
        if row.verifying_from is not None and transfer.file.size_bytes > row.verifying_from:
            transfer.go_back(row.verifying_from)
        if transfer.file.size_bytes == row.size_bytes:
            _complete(service, row, transfer)
            row = _find(service, tenant, upload_id)
    return row


def _find(service: Service, tenant: str, upload_id: str) -> ResumableUpload:
    with service.database.read() as session:
        return uploads.find(session, tenant, upload_id, now(session))


def _offset(service: Service, tenant: str, upload_id: str) -> Offset:
    row = _find(service, tenant, upload_id)
    if row.status == TransferStatus.COMPLETE:
        return Offset(row, row.size_bytes)
    arrived = service.transfers.incoming.size_bytes(upload_id)
    return Offset(row, arrived if row.verifying_from is None else min(arrived, row.verifying_from))


def _refuse_complete(row: ResumableUpload) -> None:
    if row.status == TransferStatus.COMPLETE:
        raise Failure(Code.UPLOAD_COMPLETE, "Every byte of this upload has arrived already.")


def _refuse_other_bodies(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != tus.MEDIA_TYPE:
        raise Failure(Code.UNSUPPORTED_MEDIA_TYPE, f"A part is sent with Content-Type: {tus.MEDIA_TYPE}.")
    refuse_encodings(request)


def _begin(
    service: Service, request: Request, tenant: str, upload_id: str, transfer: Transfer, checked: bool
) -> ResumableUpload:
    headers, file = request.headers, transfer.file
    row = settled(service, tenant, upload_id, transfer)
    if row.status == TransferStatus.COMPLETE:
        if file.size_bytes != row.size_bytes:
            file.remove()
        _refuse_complete(row)
    length = headers.get("upload-length")
    if length is not None and tus.number("Upload-Length", length) != row.size_bytes:
        raise Failure(Code.INCONSISTENT_UPLOAD_LENGTH, f"The upload was created for {row.size_bytes} bytes.")
    sha256 = expected_sha256(headers) or row.expected_sha256
    if row.expected_sha256 not in (None, sha256):
        raise Failure(Code.BAD_REQUEST, "Repr-Digest is not the one sent before for this upload.")
    if tus.number("Upload-Offset", headers.get("upload-offset")) != file.size_bytes:
        raise HeaderedFailure(
            Code.WRONG_OFFSET,
            f"The upload goes on at byte {file.size_bytes}.",
            headers={"Upload-Offset": str(file.size_bytes)},
        )
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > row.size_bytes - file.size_bytes:
        _drop(service, row, transfer)
        raise Failure(Code.TOO_LARGE, f"The part is longer than what is left of {row.size_bytes} bytes.")
    if checked or row.verifying_from is not None or sha256 != row.expected_sha256:
        with service.database.transaction() as session:
            uploads.begin_part(session, upload_id, file.size_bytes if checked else None, sha256)
        row.verifying_from, row.expected_sha256 = file.size_bytes if checked else None, sha256
    return row


def _end(service: Service, row: ResumableUpload, transfer: Transfer) -> Offset:
    if transfer.file.size_bytes == row.size_bytes:
        _complete(service, row, transfer)
        return Offset(row, row.size_bytes)
    transfer.file.sync()
    _renew(service, row)
    return Offset(row, transfer.file.size_bytes)


def _renew(service: Service, row: ResumableUpload) -> None:
    with service.database.read() as session:
        until = _end_of_rest(service, now(session))
    if row.verifying_from is not None or until - row.expires_at > timedelta(seconds=RENEW_SECONDS):
        with service.database.transaction() as session:
            uploads.end_part(session, row.id, until)
        row.expires_at = until


def _complete(service: Service, row: ResumableUpload, transfer: Transfer) -> None:
    transfer.file.sync()
    sha256 = transfer.sha256()
    if row.expected_sha256 is not None:
        sha256 = sha256 or transfer.file.sha256()
        if sha256 != row.expected_sha256:
            transfer.go_back(0)
            _renew(service, row)
            raise mismatch("Repr-Digest")
    with service.database.transaction() as session:
        until = _end_of_rest(service, now(session))
        uploads.complete(session, row.id, sha256, until)
    row.expires_at = until


def _drop(service: Service, row: ResumableUpload, transfer: Transfer) -> None:
    with service.database.transaction() as session:
        uploads.invalidate(session, row.id)
    transfer.file.remove()
    transfer.go_back(0)


def _remove(service: Service, caller: Caller, upload_id: str, transfer: Transfer) -> None:
    with service.database.transaction() as session:
        if not uploads.remove(session, upload_id):
            raise Failure(Code.NOT_FOUND, "There is no such upload.")
        audit.record(session, caller, Action.UPLOAD_DELETED, upload_id, now(session))
    transfer.file.remove()


def _end_of_rest(service: Service, moment: datetime) -> datetime:
    return moment + timedelta(seconds=service.settings.upload_expiry_seconds)


@asynccontextmanager
async def _renewing(service: Service, upload_id: str) -> AsyncIterator[None]:
    """One part may take longer than an upload may rest."""

    def renew() -> None:
        with service.database.transaction() as session:
            uploads.renew(session, upload_id, _end_of_rest(service, now(session)))

    async def keep() -> None:
        while True:
            await asyncio.sleep(service.settings.upload_expiry_seconds / 4)
            with suppress(Failure):
                await asyncio.to_thread(renew)

    keeping = asyncio.create_task(keep())
    try:
        yield
    finally:
        keeping.cancel()
