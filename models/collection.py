"""Removing bytes that no row names, without a race against anybody who is about to name them.

Who names bytes in a row has published them himself, less than `blobs.UNNAMED_SECONDS` before (`inspections.add_upload`
refuses what took longer), or holds a job, whose start lies before; or another row names them until he is done. So bytes
published long ago, before every job that a worker holds now, are named already or nobody's.

Nobody's bytes are condemned: a row remembers them, with the version that was seen. If after another grace there is
still no row that names them, the row goes, then the bytes, in that version: published again meanwhile, they stay. A
collector killed in between leaves bytes that the next one condemns again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, select, union
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from models.attempts import HELD
from models.blobs import Blobs, StoredBlob
from models.database import Database, now
from models.tables import Artifact, Checkpoint, CondemnedBlob, Dataset, Job, Network, ResumableUpload

REFERENCES: tuple[InstrumentedAttribute[str] | InstrumentedAttribute[str | None], ...] = (
    Network.sha256,
    Dataset.sha256,
    ResumableUpload.sha256,
    Artifact.sha256,
    Checkpoint.sha256,
)
"""Every column that names bytes; a test finds those that are missing."""

CLOCK_SKEW = timedelta(minutes=5)
"""How far the clocks of database and store may be apart."""
AT_ONCE = 500

Clock = Callable[[Session], datetime]


class Collected(NamedTuple):
    condemned: int
    revived: int
    deleted: int


def collect(database: Database, blobs: Blobs, *, grace: timedelta, clock: Clock = now) -> Collected:
    """Condemn what nobody names, and delete what was condemned a grace ago. Safe to run beside itself and all else.

    `grace` must be longer than `blobs.UNNAMED_SECONDS` and `CLOCK_SKEW` together."""
    with database.read() as session:
        before = published_before(session, grace, clock(session))
    condemned = revived = deleted = 0
    for some in _batches(stored for stored in blobs.scan() if stored.published_at < before):
        with database.transaction() as session:
            more_condemned, more_revived = judge(session, some, clock(session))
        condemned, revived = condemned + more_condemned, revived + more_revived
    while True:
        with database.transaction() as session:
            due = take_due(session, clock(session) - grace)
        deleted += sum(blobs.delete(sha256, version=version) for sha256, version in due)
        if len(due) < AT_ONCE:
            return Collected(condemned, revived, deleted)


def published_before(session: Session, grace: timedelta, now: datetime) -> datetime:
    """Bytes published before then are named by now, if anybody was going to. Ask before looking at what is stored."""
    oldest = session.scalar(select(func.min(Job.started_at)).where(Job.status.in_(HELD)))
    return now - grace if oldest is None else min(now - grace, oldest - CLOCK_SKEW)


def judge(session: Session, stored: Sequence[StoredBlob], now: datetime) -> tuple[int, int]:
    """Condemn those of `stored` that no row names, revive those that one does; returns how many of each."""
    hashes = [blob.sha256 for blob in stored]
    named = set(session.scalars(_named(hashes)))
    pardon = delete(CondemnedBlob).where(CondemnedBlob.sha256.in_(named)).returning(CondemnedBlob.sha256)
    revived = len(session.scalars(pardon).all())
    known = {
        row.sha256: row.version
        for row in session.execute(
            select(CondemnedBlob.sha256, CondemnedBlob.version).where(CondemnedBlob.sha256.in_(hashes))
        )
    }
    condemned = [blob for blob in stored if blob.sha256 not in named and known.get(blob.sha256) != blob.version]
    if condemned:
        dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
        insert = dialect.insert(CondemnedBlob).values(
            [{"sha256": blob.sha256, "version": blob.version, "condemned_at": now} for blob in condemned]
        )
        # Another version starts its grace anew.
        changes = {"version": insert.excluded.version, "condemned_at": insert.excluded.condemned_at}
        differs = CondemnedBlob.version != insert.excluded.version
        session.execute(insert.on_conflict_do_update(index_elements=["sha256"], set_=changes, where=differs))
    return len(condemned), revived


def take_due(session: Session, before: datetime) -> list[tuple[str, str]]:
    """Forget bytes condemned before then that still no row names; returns (sha256, version) of what is to be deleted.

    At most `AT_ONCE`. Rows that another collector holds are left to it."""
    due = select(CondemnedBlob.sha256).where(CondemnedBlob.condemned_at <= before, _nobody_names())
    oldest = due.order_by(CondemnedBlob.condemned_at).limit(AT_ONCE).with_for_update(skip_locked=True)
    taken = delete(CondemnedBlob).where(CondemnedBlob.sha256.in_(oldest.scalar_subquery()))
    return list(session.execute(taken.returning(CondemnedBlob.sha256, CondemnedBlob.version)).tuples())


def _nobody_names() -> ColumnElement[bool]:
    return and_(*(~exists().where(column == CondemnedBlob.sha256) for column in REFERENCES))


def _named(hashes: Sequence[str]) -> Select[str]:
    names = union(*(select(column.label("sha256")).where(column.in_(hashes)) for column in REFERENCES)).subquery()
    return select(names.c.sha256)


def _batches(stored: Iterable[StoredBlob]) -> Iterator[list[StoredBlob]]:
    some: list[StoredBlob] = []
    for blob in stored:
        some.append(blob)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some
