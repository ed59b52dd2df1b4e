"""What every blob store must do, and what a folder must survive."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest

from models.blobs import Blob, Blobs, FolderBlobs
from models.errors import Code, Failure
from models.s3_blobs import S3Blobs
from tests.models.test_transitions import together
from tests.object_store import ObjectStore

CONTENT = b"weights " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def folder_blobs(request: pytest.FixtureRequest) -> Blobs:
    return FolderBlobs(request.getfixturevalue("tmp_path") / "blobs", keep_free_bytes=0)


def s3_blobs(request: pytest.FixtureRequest) -> Blobs:
    server: ObjectStore = request.getfixturevalue("object_store")
    return server.blobs()


@pytest.fixture(params=[folder_blobs, s3_blobs])
def store(request: pytest.FixtureRequest) -> Blobs:
    """Every kind of store; another one joins by a name here."""
    opened: Blobs = request.param(request)
    return opened


def damage(store: Blobs, content: bytes) -> None:
    """What a disk, or a hand in the bucket, may do to `CONTENT`."""
    if isinstance(store, FolderBlobs):
        store.path(SHA256).write_bytes(content)
    elif isinstance(store, S3Blobs):
        version = store.stat(SHA256).version
        obstore.put(store.store, f"data/{version.partition('-')[0]}", content)


def put(store: Blobs, content: bytes = CONTENT) -> Blob:
    with store.writer() as writer:
        for start in range(0, len(content), 1000):
            writer.write(content[start : start + 1000])
        return writer.publish()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_bytes_come_back_as_they_went_in(store: Blobs) -> None:
    assert put(store) == Blob(SHA256, len(CONTENT))
    with store.open(SHA256) as file:
        assert file.read() == CONTENT
    stored = store.stat(SHA256)
    assert (stored.sha256, stored.size_bytes) == (SHA256, len(CONTENT))
    assert abs(datetime.now(UTC) - stored.published_at) < timedelta(minutes=1)
    assert store.verify(SHA256)


def test_bytes_can_be_read_from_any_position(store: Blobs) -> None:
    put(store)
    with store.open(SHA256) as file:
        assert file.seek(5000) == 5000
        assert (file.read(8), file.tell()) == (CONTENT[5000:5008], 5008)
        assert file.seek(-3, os.SEEK_END) == len(CONTENT) - 3
        assert (file.read(), file.read()) == (CONTENT[-3:], b"")
        file.seek(10 * len(CONTENT))
        assert file.read() == b""


def test_a_blob_of_many_parts_comes_and_goes(store: Blobs) -> None:
    pieces = [bytes([number]) * (1 << 20) for number in range(40)]
    with store.writer() as writer:
        for piece in pieces:
            writer.write(piece)
        blob = writer.publish()
    assert (blob.sha256, blob.size_bytes) == (hashlib.sha256(b"".join(pieces)).hexdigest(), 40 << 20)
    assert store.verify(blob.sha256)
    with store.open(blob.sha256) as file:
        file.seek(39 << 20)
        assert file.read() == pieces[-1]
    with store.writer() as writer:
        for piece in pieces[1:]:
            writer.write(piece)
    assert [stored.sha256 for stored in store.scan()] == [blob.sha256]
    assert store.clean(older_than_seconds=-60) == 0


def test_no_bytes_are_a_blob_too(store: Blobs) -> None:
    blob = put(store, b"")
    assert blob == Blob(hashlib.sha256(b"").hexdigest(), 0)
    assert store.verify(blob.sha256)


def test_the_same_bytes_are_stored_once(store: Blobs) -> None:
    assert put(store) == put(store)
    assert [stored.sha256 for stored in store.scan()] == [SHA256]
    assert store.delete(SHA256)
    assert not store.delete(SHA256)
    assert list(store.scan()) == []


def test_a_version_is_deleted_unless_the_bytes_were_published_again(store: Blobs) -> None:
    put(store)
    [seen] = store.scan()
    assert seen == store.stat(SHA256)
    put(store)
    store.delete(SHA256, version=seen.version)
    assert store.verify(SHA256)
    latest = store.stat(SHA256)
    assert latest.version != seen.version
    assert store.delete(SHA256, version=latest.version)
    assert not store.verify(SHA256)
    assert not store.delete(SHA256, version=latest.version)


def test_everything_that_is_stored_is_found(store: Blobs) -> None:
    blobs = {put(store, bytes([number]) * 10) for number in range(20)}
    assert {Blob(stored.sha256, stored.size_bytes) for stored in store.scan()} == blobs


def test_a_file_of_our_own_is_taken(store: Blobs, tmp_path: Path) -> None:
    source = (store.staging if isinstance(store, FolderBlobs) else tmp_path) / "arrived"
    source.write_bytes(CONTENT)
    os.utime(source, (0, 0))
    store.take_file(source, Blob(SHA256, len(CONTENT)))
    assert not source.exists()
    assert store.verify(SHA256)
    assert datetime.now(UTC) - store.stat(SHA256).published_at < timedelta(minutes=1)


def test_a_store_says_that_it_can_be_written(store: Blobs) -> None:
    store.ping()
    assert list(store.scan()) == []
    assert store.clean(older_than_seconds=0) == 0


def test_writers_of_the_same_bytes_at_once_all_succeed(store: Blobs) -> None:
    assert together(*[lambda: put(store)] * 6) == [Blob(SHA256, len(CONTENT))] * 6
    assert store.verify(SHA256)


def test_bytes_that_were_not_published_are_not_there(store: Blobs) -> None:
    with store.writer() as writer:
        writer.write(CONTENT)
        assert writer.size_bytes == len(CONTENT)
    assert not store.verify(SHA256)
    assert store.clean(older_than_seconds=0) == 0


def test_a_writer_that_fails_leaves_nothing(store: Blobs) -> None:
    def fail() -> None:
        with store.writer() as writer:
            writer.write(CONTENT)
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        fail()
    assert not store.verify(SHA256)
    assert store.clean(older_than_seconds=0) == 0


def test_bytes_that_are_not_there_are_not_found(store: Blobs) -> None:
    with pytest.raises(Failure, match="These bytes are not stored any more") as missing:
        store.open(SHA256)
    assert missing.value.code is Code.NOT_FOUND
    with pytest.raises(Failure, match="These bytes are not stored any more"):
        store.stat(SHA256)
    assert not store.verify(SHA256)
    assert not store.delete(SHA256)


def test_a_flipped_bit_is_seen_and_the_blob_can_be_written_again(store: Blobs) -> None:
    put(store)
    damage(store, bytes([CONTENT[0] ^ 1]) + CONTENT[1:])
    assert not store.verify(SHA256)
    put(store)
    assert store.verify(SHA256)


@pytest.mark.parametrize("name", ["../../etc/passwd", SHA256.upper(), SHA256[:-1], "", f"{SHA256}\n"])
def test_a_name_that_is_no_hash_is_never_a_path(store: Blobs, name: str) -> None:
    for use in (store.open, store.stat, store.delete):
        with pytest.raises(ValueError, match="no SHA-256"):
            use(name)


def test_a_file_is_copied_in(store: Blobs, tmp_path: Path) -> None:
    source = tmp_path / "network.onnx"
    source.write_bytes(CONTENT)
    assert store.put_file(source) == Blob(SHA256, len(CONTENT))
    source.write_bytes(b"changed")
    assert store.verify(SHA256)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "folder", "missing", "too long"])
def test_what_a_hostile_engine_could_leave_is_not_copied(store: Blobs, tmp_path: Path, kind: str) -> None:
    secret, source = tmp_path / "secret", tmp_path / "network.onnx"
    secret.write_bytes(CONTENT)
    match kind:
        case "symlink":
            source.symlink_to(secret)
        case "hard link":
            source.hardlink_to(secret)
        case "fifo":
            os.mkfifo(source)
        case "folder":
            source.mkdir()
        case "too long":
            source.write_bytes(CONTENT)
    messages = {
        "hard link": "The file must be a regular one with one link",
        "fifo": "The file must be a regular one with one link",
        "too long": "The file is longer than 100 bytes",
        "folder": "The file must be a regular one with one link",
    }
    with pytest.raises(Failure, match=messages.get(kind, "The file cannot be opened")) as refused:
        store.put_file(source, max_bytes=100)
    assert (refused.value.code, refused.value.where) == (Code.INTERNAL, "network.onnx")
    assert not store.verify(SHA256)
    assert store.clean(older_than_seconds=0) == 0


def test_a_size_without_room_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path)
    with pytest.raises(Failure, match="There is no room for these bytes") as refused:
        store.writer(expected_bytes=1 << 60)
    assert refused.value.code is Code.DISK_FULL
    assert files(tmp_path) == []


@pytest.mark.parametrize("size", [-1, 100])
def test_what_the_disk_cannot_read_is_damaged(tmp_path: Path, size: int) -> None:
    store = FolderBlobs(tmp_path)
    store.path(SHA256).parent.mkdir(parents=True)
    store.path(SHA256).symlink_to("/proc/self/mem")  # nothing is mapped at 0, so reading it is an EIO
    assert not store.verify(SHA256)
    with store.open(SHA256) as file, pytest.raises(Failure, match="damaged: the disk cannot read it") as unreadable:
        file.read(size)
    assert unreadable.value.code is Code.FILE_DAMAGED


def test_only_files_of_writers_long_dead_are_cleaned(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path)
    (store.staging / "old").write_bytes(CONTENT)
    os.utime(store.staging / "old", (0, 0))
    with store.writer() as writer:
        writer.write(CONTENT)
        assert store.clean(older_than_seconds=3600) == 1
        writer.publish()
    assert files(tmp_path) == [".lock", f"{SHA256[:2]}/{SHA256[2:4]}/{SHA256}"]


def test_a_planted_link_in_staging_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderBlobs(tmp_path / "blobs")
    victim = tmp_path / "victim"

    class Known:
        hex = "known"

    monkeypatch.setattr("models.blobs.uuid4", Known)
    (store.staging / "known").symlink_to(victim)
    with pytest.raises(FileExistsError):
        store.writer()
    assert not victim.exists()


CALLS = {
    ("open", 1): False,
    ("fdopen", 1): False,
    ("fsync", 1): False,
    ("mkdir", 2): False,
    ("mkdir", 3): False,
    ("rename", 1): None,
    ("fsync", 2): True,
    ("fsync", 4): True,
}
"""What a publish asks of the system and how often; whether a process that dies there has published (None: depends)."""

KILLED = """
import os, sys
from pathlib import Path
from models.blobs import FolderBlobs

folder, name, count, side = sys.argv[1:]
store = FolderBlobs(Path(folder), keep_free_bytes=0)
real, left = getattr(os, name), int(count)

def dying(*arguments, **options):
    global left
    left -= 1
    if left == 0 and side == "before":
        os.kill(os.getpid(), 9)
    answer = real(*arguments, **options)
    if left == 0:
        os.kill(os.getpid(), 9)
    return answer

setattr(os, name, dying)
with store.writer() as writer:
    writer.write(b"weights " * 1000)
    writer.publish()
"""


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize(("call", "count"), CALLS)
def test_a_kill_at_any_step_of_a_publish_leaves_all_or_nothing(
    tmp_path: Path, call: str, count: int, side: str
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), call, str(count), side]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == -9
    store = FolderBlobs(tmp_path, keep_free_bytes=0)
    published = [name for name in files(tmp_path) if name != ".lock" and not name.startswith("staging/")]
    assert all(store.verify(Path(name).name) for name in published)
    expected = CALLS[call, count]
    assert bool(published) is (side == "after" if expected is None else expected)
    store.clean(older_than_seconds=-1)
    assert [name for name in files(tmp_path) if name != ".lock"] == published
    assert put(store).sha256 == SHA256
    assert store.verify(SHA256)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"only root may mount: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(bytes(folder), 0)


def test_a_disk_that_fills_up_is_said_and_recovers(small_disk: Path) -> None:
    store = FolderBlobs(small_disk, keep_free_bytes=0)
    small = put(store, b"small")
    with pytest.raises(Failure, match="There is no room for these bytes") as refused:
        put(store, os.urandom(2_000_000))
    assert refused.value.code is Code.DISK_FULL
    assert files(small_disk / "staging") == []
    assert store.verify(small.sha256)
    assert put(store).sha256 == SHA256


def test_a_reader_beside_a_publish_never_sees_a_part(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path, keep_free_bytes=0)
    content = os.urandom(1 << 20)
    sha256 = hashlib.sha256(content).hexdigest()
    done = threading.Event()
    seen: set[bool] = set()

    def read() -> None:
        while not done.is_set() or True not in seen:
            if store.path(sha256).exists():
                seen.add(store.verify(sha256))

    def write() -> None:
        for _ in range(5):
            put(store, content)
        done.set()

    together(read, write)
    assert seen == {True}
