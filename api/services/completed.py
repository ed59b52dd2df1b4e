"""A resumable upload that is whole becomes a network or a data set: its file is moved, no byte is copied."""

from __future__ import annotations

import asyncio

from fastapi import Request

from api import tus
from api.auth import Caller
from api.bodies import too_large
from api.deps import Service
from api.digests import expected_sha256
from api.services.first_bytes import refuse_by_first_bytes
from api.services.resumable import settled
from api.services.uploads import UPLOADED, clean_name
from api.transfers import Transfer
from models import audit, uploads
from models.blobs import Blob
from models.database import now
from models.errors import Code, Failure
from models.formats import HEAD_BYTES
from models.inspections import UploadTable, add_upload, read_options_of
from models.reading import ReadOptions
from models.statuses import TransferStatus
from models.tables import Dataset, Network, ResumableUpload


async def use(
    service: Service,
    request: Request,
    table: UploadTable,
    caller: Caller,
    upload_id: str,
    name: str | None,
    limit_bytes: int,
    read_options: ReadOptions | None = None,
) -> Network | Dataset:
    """The row that the upload becomes, and a nudge to inspect it; asked again, the same row, and another one where the
    file is to be read otherwise.

    Raises `Failure` with `not_found`, `upload_incomplete`, `upload_expired`, `upload_invalid`, `upload_busy`,
    `too_large`, `checksum_mismatch`, and with what the first bytes show; the upload stays as it is then.
    """
    if tus.has_body(request):
        raise Failure(Code.BAD_REQUEST, "The bytes are those of the upload named in `upload`: send no body.")
    announced = expected_sha256(request.headers)
    await asyncio.to_thread(_known, service, caller.tenant, upload_id)
    async with service.transfers.hold(upload_id) as transfer:
        row = await asyncio.to_thread(
            _turn, service, table, caller, upload_id, transfer, name, limit_bytes, announced, read_options
        )
    service.nudger.upload_waits()
    return row


def _known(service: Service, tenant: str, upload_id: str) -> None:
    with service.database.read() as session:
        uploads.find(session, tenant, upload_id, now(session))


def _turn(
    service: Service,
    table: UploadTable,
    caller: Caller,
    upload_id: str,
    transfer: Transfer,
    name: str | None,
    limit_bytes: int,
    announced: str | None,
    read_options: ReadOptions | None,
) -> Network | Dataset:
    upload = settled(service, caller.tenant, upload_id, transfer)
    if upload.status != TransferStatus.COMPLETE:
        raise Failure(
            Code.UPLOAD_INCOMPLETE,
            f"{transfer.file.size_bytes} of {upload.size_bytes} bytes have arrived.",
            where=upload_id,
        )
    if announced is not None and announced != _hash(service, upload, transfer):
        raise Failure(Code.CHECKSUM_MISMATCH, "The upload is not the file that Repr-Digest announces.", where=upload_id)
    before = uploads.became(upload, table)
    if before is not None:
        with service.database.read() as session:
            row = session.get(table, before)
        if row is not None and (
            not isinstance(row, Network) or read_options_of(row) == (read_options or ReadOptions())
        ):
            assert isinstance(row, Network | Dataset)
            return row
    if upload.size_bytes > limit_bytes:
        raise too_large(limit_bytes)
    shown = clean_name(name or upload.name)
    blob = _published(service, table, upload, transfer, shown, read_options)
    with service.database.transaction() as session:
        moment = now(session)
        added = add_upload(
            session, table, tenant=caller.tenant, name=shown, blob=blob, now=moment, read_options=read_options
        )
        if not uploads.become(session, upload_id, table, added.id, before):
            raise Failure(Code.UPLOAD_BUSY, "Another request is using this upload.")
        audit.record(session, caller, UPLOADED[table], added.id, moment)
        return added


def _published(
    service: Service,
    table: UploadTable,
    upload: ResumableUpload,
    transfer: Transfer,
    name: str,
    read_options: ReadOptions | None,
) -> Blob:
    """Also where it was published before: by a process that died then, or for a row of the other kind."""
    file = transfer.file
    if upload.sha256 is not None and file.size_bytes != upload.size_bytes:
        file.remove()  # `hold` has made it
        with service.blobs.open(upload.sha256) as stored:
            refuse_by_first_bytes(table, stored.read(HEAD_BYTES), upload.size_bytes, name, read_options)
        return Blob(upload.sha256, upload.size_bytes)
    refuse_by_first_bytes(table, file.head(HEAD_BYTES), upload.size_bytes, name, read_options)
    return service.blobs.take_file(file.path, Blob(_hash(service, upload, transfer), upload.size_bytes))


def _hash(service: Service, upload: ResumableUpload, transfer: Transfer) -> str:
    """Known, unless a process died that had hashed a part; then every byte is read again."""
    if upload.sha256 is None:
        upload.sha256 = transfer.sha256() or transfer.file.sha256()
        with service.database.transaction() as session:
            uploads.know_hash(session, upload.id, upload.sha256)
    return upload.sha256
