"""The life of an uploaded network or data set: accepted, inspected once under a lease, ready or rejected, deleted.

inspecting -> ready | rejected, each change one guarded statement as in `transitions.py`, with the same fencing token.
"""

from __future__ import annotations

from datetime import datetime
from typing import cast

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, literal, null, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models.blobs import UNNAMED_SECONDS, Blob
from models.errors import Code, Failure, JobError
from models.ids import new_id
from models.inspection import DatasetInspection, NetworkInspection
from models.reading import ReadOptions
from models.statuses import UploadStatus
from models.tables import Dataset, Job, JobTeacher, Network, dump

Upload = Network | Dataset
UploadTable = type[Network] | type[Dataset]

TABLES: dict[str, UploadTable] = {"network": Network, "dataset": Dataset}
PREFIXES: dict[UploadTable, str] = {Network: "net", Dataset: "dat"}


def add_upload(
    session: Session,
    table: UploadTable,
    *,
    tenant: str,
    name: str,
    blob: Blob,
    now: datetime,
    read_options: ReadOptions | None = None,
) -> Upload:
    """Insert the row of bytes that are already in the blob store; its inspection waits. Only a network has
    `read_options`.

    Raises `Failure` with `unavailable` when they were published so long ago that they may be collected by now."""
    if blob.age_seconds() > UNNAMED_SECONDS:
        raise Failure(Code.UNAVAILABLE, "The file was stored, but the service was busy for too long; send it again.")
    row = table(
        id=new_id(PREFIXES[table]),
        tenant=tenant,
        name=name,
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        status=UploadStatus.INSPECTING.value,
        attempt=0,
        strikes=0,
        created_at=now,
    )
    if isinstance(row, Network) and read_options is not None:
        row.read_options = dump(read_options)
    session.add(row)
    session.flush()
    return row


def read_options_of(row: Network) -> ReadOptions:
    return ReadOptions() if row.read_options is None else ReadOptions.model_validate(row.read_options)


def claim_upload(session: Session, *, lease_until: datetime) -> Upload | None:
    """Take the oldest upload that waits for inspection, with a new attempt; `None`: none waits."""
    first: list[tuple[datetime, str, UploadTable]] = []
    for table in PREFIXES:
        waiting = select(table.created_at, table.id).where(_waiting(table)).order_by(table.created_at, table.id)
        row = session.execute(waiting.limit(1).with_for_update(skip_locked=True)).one_or_none()
        if row is not None:
            first.append((row.created_at, row.id, table))
    if not first:
        return None
    _, upload_id, table = min(first, key=lambda candidate: candidate[:2])
    guard = and_(table.id == upload_id, _waiting(table))
    return _change(session, table, guard, attempt=table.attempt + 1, lease_expires_at=lease_until)


def beat_upload(session: Session, table: UploadTable, upload_id: str, attempt: int, lease_until: datetime) -> bool:
    """Renew the lease; `False`: this attempt holds the upload no more."""
    return _change(session, table, _held(table, upload_id, attempt), lease_expires_at=lease_until) is not None


def accept_upload(
    session: Session,
    table: UploadTable,
    upload_id: str,
    attempt: int,
    inspection: NetworkInspection | DatasetInspection,
) -> bool:
    """inspecting -> ready."""
    guard = _held(table, upload_id, attempt)
    values = {"status": UploadStatus.READY, "inspection": dump(inspection), "lease_expires_at": None}
    return _change(session, table, guard, **values) is not None


def reject_upload(session: Session, table: UploadTable, upload_id: str, attempt: int, error: JobError) -> bool:
    """inspecting -> rejected."""
    guard = _held(table, upload_id, attempt)
    values = {"status": UploadStatus.REJECTED, "error": dump(error), "lease_expires_at": None}
    return _change(session, table, guard, **values) is not None


def give_back_upload(session: Session, table: UploadTable, upload_id: str, attempt: int) -> bool:
    """The worker stops: the inspection waits again, without a strike."""
    return _change(session, table, _held(table, upload_id, attempt), lease_expires_at=None) is not None


def strike_upload(
    session: Session, table: UploadTable, upload_id: str, attempt: int, error: JobError, max_strikes: int
) -> UploadStatus | None:
    """The inspection ended badly and another may do better: it waits again with one strike more, or is rejected with
    `error` when that was the last one allowed. Returns the status it has now; `None`: not this attempt's any more."""
    row = _end_attempt(session, table, _held(table, upload_id, attempt), error, max_strikes)
    return None if row is None else UploadStatus(row.status)


def sweep_uploads(session: Session, *, max_strikes: int, now: datetime) -> list[tuple[str, UploadStatus]]:
    """End, as `strike_upload` does, every inspection whose lease ran out. Safe to run twice, and beside itself."""
    error = Failure(Code.WORKER_LOST, "The worker stopped answering while it inspected this file.").as_error()
    changed: list[tuple[str, UploadStatus]] = []
    for table in PREFIXES:
        lapsed = select(table.id).where(table.lease_expires_at < now).order_by(table.id)
        for upload_id in session.scalars(lapsed.with_for_update(skip_locked=True)).all():  # locked, so they stay lapsed
            row = _end_attempt(session, table, table.id == upload_id, error, max_strikes)
            if row is not None:
                changed.append((upload_id, UploadStatus(row.status)))
    return changed


def waiting_count(session: Session) -> int:
    """How many uploads wait for inspection."""
    return sum(session.scalar(select(func.count()).where(_waiting(table))) or 0 for table in PREFIXES)


def delete_upload(session: Session, table: UploadTable, tenant: str, upload_id: str) -> bool:
    """Delete the row; `False`: the tenant has no such upload. Its bytes are for the collector of blobs.

    Raises `Failure` with `in_use` while a job names it, also an ended one: its report speaks of this file."""
    mine = and_(table.id == upload_id, table.tenant == tenant)
    named = exists().where(or_(Job.network_id == upload_id, Job.dataset_id == upload_id))
    used = or_(named, exists().where(JobTeacher.network_id == upload_id))
    in_use = Failure(Code.IN_USE, "A job uses it. Delete that job first, once it has ended.", where=upload_id)
    try:
        if session.scalar(delete(table).where(mine, ~used).returning(table.id)) is not None:
            return True
    except IntegrityError as error:  # a job was submitted in this moment
        raise in_use from error
    if session.scalar(select(table.id).where(mine)) is None:
        return False
    raise in_use


def _waiting(table: UploadTable) -> ColumnElement[bool]:
    return and_(table.status == UploadStatus.INSPECTING, table.lease_expires_at.is_(None))


def _held(table: UploadTable, upload_id: str, attempt: int) -> ColumnElement[bool]:
    """Only an upload that somebody inspects has a lease."""
    return and_(table.id == upload_id, table.attempt == attempt, table.lease_expires_at.is_not(None))


def _end_attempt(
    session: Session, table: UploadTable, guard: ColumnElement[bool], error: JobError, max_strikes: int
) -> Upload | None:
    retried = table.strikes + 1 < max_strikes
    return _change(
        session,
        table,
        guard,
        status=case((retried, UploadStatus.INSPECTING), else_=UploadStatus.REJECTED),
        strikes=table.strikes + 1,
        error=case((retried, null()), else_=literal(dump(error), table.error.type)),
        lease_expires_at=None,
    )


def _change(session: Session, table: UploadTable, guard: ColumnElement[bool], **values: object) -> Upload | None:
    """The one place where an upload's status is written."""
    statement = (
        update(table)
        .where(guard)
        .values(**values)
        .returning(table)
        .execution_options(synchronize_session=False, populate_existing=True)
    )
    return cast("Upload | None", session.scalars(statement).one_or_none())
