"""Resumable uploads on both databases and on disk: the states, the sweep, the lock."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from models import uploads
from models.blobs import Blob, FolderBlobs
from models.database import Database, now
from models.errors import Code, Failure
from models.incoming import Incoming
from models.statuses import TransferStatus
from models.tables import Dataset, Network, ResumableUpload
from tests.models.rows import at


def add(session: Session, *, tenant: str = "a", size_bytes: int = 10, expires: float = 100) -> str:
    return uploads.create(
        session,
        tenant=tenant,
        name="file",
        upload_metadata=None,
        size_bytes=size_bytes,
        expected_sha256=None,
        expires_at=at(expires),
        now=at(0),
    ).id


def status(session: Session, upload_id: str) -> str:
    found = session.scalar(select(ResumableUpload.status).where(ResumableUpload.id == upload_id))
    assert found is not None
    return found


def refused(session: Session, tenant: str, upload_id: str, seconds: float = 1) -> Code:
    with pytest.raises(Failure) as failed:
        uploads.find(session, tenant, upload_id, at(seconds))
    return failed.value.code


def test_an_upload_is_found_by_its_tenant_until_it_ends(session: Session) -> None:
    upload_id = add(session)
    assert uploads.find(session, "a", upload_id, at(99)).status == TransferStatus.OPEN
    assert refused(session, "b", upload_id) is Code.NOT_FOUND
    assert refused(session, "a", "upl_" + "0" * 26) is Code.NOT_FOUND
    assert refused(session, "a", "../../etc/passwd") is Code.NOT_FOUND
    assert refused(session, "a", upload_id, 100) is Code.UPLOAD_EXPIRED
    uploads.invalidate(session, upload_id)
    assert refused(session, "a", upload_id) is Code.UPLOAD_INVALID


def test_only_an_open_upload_changes(session: Session) -> None:
    upload_id = add(session)
    assert uploads.complete(session, upload_id, "a" * 64, at(200))
    assert not uploads.complete(session, upload_id, "b" * 64, at(300))
    uploads.invalidate(session, upload_id)
    uploads.begin_part(session, upload_id, 5, None)
    uploads.end_part(session, upload_id, at(999))
    uploads.know_hash(session, upload_id, "c" * 64)
    row = uploads.find(session, "a", upload_id, at(150))
    assert (row.status, row.sha256, row.verifying_from, row.expires_at) == ("complete", "a" * 64, None, at(200))


def test_an_upload_becomes_one_network_and_one_dataset(session: Session) -> None:
    upload_id = add(session)
    assert not uploads.become(session, upload_id, Network, "net_1", None), "it is not complete"
    uploads.complete(session, upload_id, None, at(200))
    assert uploads.become(session, upload_id, Network, "net_1", None)
    assert not uploads.become(session, upload_id, Network, "net_2", None)
    assert uploads.become(session, upload_id, Dataset, "dat_1", None)
    assert uploads.become(session, upload_id, Network, "net_2", "net_1")
    row = uploads.find(session, "a", upload_id, at(1))
    assert (uploads.became(row, Network), uploads.became(row, Dataset)) == ("net_2", "dat_1")


def test_no_bytes_at_all_are_complete_at_once(session: Session) -> None:
    assert status(session, add(session, size_bytes=0)) == TransferStatus.COMPLETE


@pytest.fixture
def incoming(tmp_path: Path) -> Incoming:
    return Incoming(tmp_path / "incoming", keep_free_bytes=0)


def put(incoming: Incoming, upload_id: str, content: bytes = b"bytes") -> Path:
    file = incoming.hold(upload_id)
    assert file is not None
    with file:
        file.append(content)
    return incoming.path(upload_id)


def test_the_sweep_expires_what_rested_too_long_and_leaves_what_is_held(database: Database, incoming: Incoming) -> None:
    with database.transaction() as session:
        moment = now(session)
        ids = [add(session) for _ in range(4)]
        fresh, due, held, used = ids
        for upload_id, age in ((fresh, 60), (due, -1), (held, -1), (used, -1)):
            uploads.renew(session, upload_id, moment + timedelta(seconds=age))
        uploads.complete(session, used, "a" * 64, moment - timedelta(seconds=1))
    paths = {upload_id: put(incoming, upload_id) for upload_id in (fresh, due, held)}
    file = incoming.hold(held)
    assert file is not None
    with file:
        uploads.sweep(database, incoming)
        assert [paths[upload_id].exists() for upload_id in (fresh, due, held)] == [True, False, True]
    uploads.sweep(database, incoming)
    assert list(incoming.folder.iterdir()) == [paths[fresh]]
    with database.read() as session:
        assert [status(session, upload_id) for upload_id in ids] == ["open", "expired", "expired", "expired"]
    assert uploads.sweep(database, incoming) == 0


def test_the_sweep_forgets_long_expired_rows_and_removes_files_of_nobody(
    database: Database, incoming: Incoming
) -> None:
    with database.transaction() as session:
        old, mine = add(session), add(session)
        uploads.renew(session, old, now(session) - uploads.REMEMBERED - timedelta(seconds=1))
        uploads.renew(session, mine, now(session) + timedelta(days=1))
    strange, young = "upl_" + "1" * 26, "upl_" + "2" * 26
    for upload_id in (old, mine, strange, young):
        path = put(incoming, upload_id)
        if upload_id != young:
            hours_ago = time.time() - 2 * uploads.STRANGE_SECONDS
            os.utime(path, (hours_ago, hours_ago))
    (incoming.folder / "notes.txt").write_text("not ours")
    assert uploads.sweep(database, incoming) == 2
    assert {path.name for path in incoming.folder.iterdir()} == {mine, young, "notes.txt"}
    with database.read() as session:
        assert session.scalars(select(ResumableUpload.id)).all() == [mine]


def test_a_file_is_held_by_one_and_its_length_is_the_offset(incoming: Incoming) -> None:
    upload_id = "upl_" + "3" * 26
    assert incoming.size_bytes(upload_id) == 0
    first = incoming.hold(upload_id)
    assert first is not None
    with first:
        first.append(b"abc")
        assert incoming.hold(upload_id) is None
        first.append(b"def")
        first.truncate(4)
        assert (first.size_bytes, incoming.size_bytes(upload_id), first.head(3)) == (4, 4, b"abc")
    second = incoming.hold(upload_id)
    assert second is not None
    with second:
        assert second.size_bytes == 4
        second.remove()
        third = incoming.hold(upload_id)
        assert third is not None
        with third:
            assert third.size_bytes == 0, "a removed file's lock holds nobody up"


def test_a_file_is_published_without_a_copy(tmp_path: Path, incoming: Incoming) -> None:
    store = FolderBlobs(tmp_path, keep_free_bytes=0)
    upload_id = "upl_" + "4" * 26
    path = put(incoming, upload_id, b"weights")
    inode = path.stat().st_ino
    file = incoming.hold(upload_id)
    assert file is not None
    with file:
        blob = Blob(file.sha256(), file.size_bytes)
        store.take_file(file.path, blob)
    assert store.path(blob.sha256).stat().st_ino == inode
    assert store.verify(blob.sha256)
    assert not path.exists()


@pytest.mark.parametrize("upload_id", ["../x", "upl_", "net_" + "0" * 26, "upl_" + "0" * 25 + "/"])
def test_no_other_name_is_a_path(incoming: Incoming, upload_id: str) -> None:
    with pytest.raises(ValueError, match="no upload"):
        incoming.path(upload_id)


def test_nothing_is_written_through_a_link(incoming: Incoming, tmp_path: Path) -> None:
    upload_id = "upl_" + "5" * 26
    (tmp_path / "secret").write_bytes(b"secret")
    incoming.path(upload_id).symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        incoming.hold(upload_id)
