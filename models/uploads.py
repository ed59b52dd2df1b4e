"""The life of a resumable upload: open, complete, turned into a network or a data set; or invalid; expired in the end.

Every change is one guarded statement. How much has arrived is the length of its file (`models.incoming`), whose lock
is held by whoever changes file and row together.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, select, update
from sqlalchemy.orm import Session, load_only

from models.database import Database, now
from models.errors import Code, Failure
from models.ids import is_id, new_id
from models.incoming import PREFIX, Incoming
from models.inspections import UploadTable
from models.statuses import TransferStatus
from models.tables import Network, ResumableUpload

REMEMBERED = timedelta(days=7)
"""How long an expired upload is still called expired, and not unknown."""

STRANGE_SECONDS = 3600.0
"""Files of this age that no row names are removed."""

SWEPT_AT_ONCE = 500


def create(
    session: Session,
    *,
    tenant: str,
    name: str,
    upload_metadata: str | None,
    size_bytes: int,
    expected_sha256: str | None,
    expires_at: datetime,
    now: datetime,
) -> ResumableUpload:
    """Insert the row; its file comes with the first byte. No bytes at all are complete at once."""
    row = ResumableUpload(
        id=new_id(PREFIX),
        tenant=tenant,
        name=name,
        upload_metadata=upload_metadata,
        size_bytes=size_bytes,
        expected_sha256=expected_sha256,
        status=(TransferStatus.OPEN if size_bytes else TransferStatus.COMPLETE).value,
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return row


def find(session: Session, tenant: str, upload_id: str, now: datetime) -> ResumableUpload:
    """Raises `Failure` with `not_found`, the same for an unknown id, a malformed one and another tenant's; with
    `upload_expired` and `upload_invalid` for what can never go on."""
    row = None
    if is_id(upload_id, PREFIX):
        mine = and_(ResumableUpload.id == upload_id, ResumableUpload.tenant == tenant)
        row = session.scalar(select(ResumableUpload).where(mine))
    if row is None:
        raise Failure(Code.NOT_FOUND, "There is no such upload.")
    if row.status == TransferStatus.INVALID:
        raise Failure(Code.UPLOAD_INVALID, "More bytes came than the upload was created for; all of them were dropped.")
    if row.status == TransferStatus.EXPIRED or row.expires_at <= now:
        raise Failure(Code.UPLOAD_EXPIRED, f"The upload rested until {row.expires_at:%Y-%m-%d %H:%M:%S} UTC.")
    return row


def begin_part(session: Session, upload_id: str, verifying_from: int | None, expected_sha256: str | None) -> None:
    """Before the first byte of a part is written: from where on bytes do not count until their checksum is seen."""
    _change(session, _open(upload_id), verifying_from=verifying_from, expected_sha256=expected_sha256)


def renew(session: Session, upload_id: str, expires_at: datetime) -> None:
    """Let the upload rest until `expires_at`."""
    _change(session, _open(upload_id), expires_at=expires_at)


def end_part(session: Session, upload_id: str, expires_at: datetime) -> None:
    """What was written counts, and the upload may rest until `expires_at`."""
    _change(session, _open(upload_id), verifying_from=None, expires_at=expires_at)


def complete(session: Session, upload_id: str, sha256: str | None, expires_at: datetime) -> bool:
    """open -> complete. `sha256` is `None` while nobody has read the bytes together."""
    values = {"status": TransferStatus.COMPLETE, "sha256": sha256, "verifying_from": None, "expires_at": expires_at}
    return _change(session, _open(upload_id), **values) is not None


def know_hash(session: Session, upload_id: str, sha256: str) -> None:
    _change(session, and_(ResumableUpload.id == upload_id, ResumableUpload.sha256.is_(None)), sha256=sha256)


def invalidate(session: Session, upload_id: str) -> None:
    """open -> invalid."""
    _change(session, _open(upload_id), status=TransferStatus.INVALID, verifying_from=None)


def became(row: ResumableUpload, table: UploadTable) -> str | None:
    """The network, or data set, that this upload was turned into."""
    return row.network_id if table is Network else row.dataset_id


def become(session: Session, upload_id: str, table: UploadTable, row_id: str, instead_of: str | None) -> bool:
    """Remember what the upload was turned into; `False`: another request was first, or the upload has gone."""
    column = ResumableUpload.network_id if table is Network else ResumableUpload.dataset_id
    unchanged = column.is_(None) if instead_of is None else column == instead_of
    guard = and_(ResumableUpload.id == upload_id, ResumableUpload.status == TransferStatus.COMPLETE, unchanged)
    return _change(session, guard, **{column.key: row_id}) is not None


def remove(session: Session, upload_id: str) -> bool:
    """Forget the row; its file goes after it."""
    gone = delete(ResumableUpload).where(ResumableUpload.id == upload_id).returning(ResumableUpload.id)
    return session.scalar(gone) is not None


def sweep(database: Database, incoming: Incoming) -> int:
    """Expire what rested too long, and remove files that belong to no upload any more; returns how many files went.

    A file that somebody holds is left alone. Safe to run twice, and beside itself."""
    with database.transaction() as session:
        moment = now(session)
        session.execute(delete(ResumableUpload).where(ResumableUpload.expires_at < moment - REMEMBERED))
        due = select(ResumableUpload.id).where(_lapsed(moment)).order_by(ResumableUpload.expires_at)
        lapsed = session.scalars(due.limit(SWEPT_AT_ONCE)).all()
    removed = sum(_expire(database, incoming, upload_id) for upload_id in lapsed)
    return removed + sum(
        _remove_stranger(database, incoming, upload_id)
        for upload_id in incoming.abandoned(older_than_seconds=STRANGE_SECONDS)
    )


def _expire(database: Database, incoming: Incoming, upload_id: str) -> bool:
    file = incoming.hold(upload_id)
    if file is None:
        return False
    with file:
        with database.transaction() as session:
            guard = and_(ResumableUpload.id == upload_id, _lapsed(now(session)))
            values = {"status": TransferStatus.EXPIRED, "sha256": None, "verifying_from": None}
            expired = _change(session, guard, **values) is not None
        if expired:
            file.remove()
        return expired


def _remove_stranger(database: Database, incoming: Incoming, upload_id: str) -> bool:
    file = incoming.hold(upload_id)
    if file is None:
        return False
    with file:
        with database.read() as session:
            row = session.scalar(
                select(ResumableUpload)
                .options(load_only(ResumableUpload.status))
                .where(ResumableUpload.id == upload_id)
            )
        if row is not None and row.status in (TransferStatus.OPEN, TransferStatus.COMPLETE):
            return False
        file.remove()
        return True


def _open(upload_id: str) -> ColumnElement[bool]:
    return and_(ResumableUpload.id == upload_id, ResumableUpload.status == TransferStatus.OPEN)


def _lapsed(moment: datetime) -> ColumnElement[bool]:
    return and_(ResumableUpload.expires_at <= moment, ResumableUpload.status != TransferStatus.EXPIRED)


def _change(session: Session, guard: ColumnElement[bool], **values: object) -> ResumableUpload | None:
    """The one place where an upload's row is changed."""
    statement = (
        update(ResumableUpload)
        .where(guard)
        .values(**values)
        .returning(ResumableUpload)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return session.scalars(statement).one_or_none()
