"""Bytes by their SHA-256. Every writer publishes the same way: readers see a whole file or none, whatever dies when.

`staging/<uuid>` is created exclusively and hashed while it is written; then fsync, rename to `ab/cd/<sha256>`, fsync of
the folders. Bytes come before the row that names them, and go after it; `models/collection.py` removes those that no
row names. `models/s3_blobs.py` does the same in a bucket, `models/storage.py` chooses.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import BinaryIO, Protocol, Self
from uuid import uuid4

from models.errors import Code, Failure

CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
UNNAMED_SECONDS = 300.0
"""After so long, who published bytes may not name them in a row any more: they may be on their way out."""
_LOCK = ".lock"
"""Held shared to publish into a folder, alone to delete from it."""


def _boot_seconds() -> float:
    """A clock that also runs while the process is stopped, or the machine asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Blob:
    """Published bytes: `sha256` as 64 hex digits."""

    sha256: str
    size_bytes: int
    _published: float = field(default_factory=_boot_seconds, compare=False, repr=False)

    def age_seconds(self) -> float:
        """Since they were published, in this process."""
        return _boot_seconds() - self._published


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """Bytes that a store holds. Publishing them again, though they are the same, makes another `version` of them."""

    sha256: str
    size_bytes: int
    version: str
    published_at: datetime


class BlobWriter(Protocol):
    """Use as a context: what is not published when it ends is gone."""

    size_bytes: int
    """Written so far."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def write(self, chunk: bytes) -> None:
        """Append. Raises `Failure` with `disk_full`; then nothing of it stays."""

    def sha256(self) -> str:
        """Of what was written so far."""

    def publish(self) -> Blob:
        """Make the bytes durable and visible under their hash."""


class Blobs(Protocol):
    """A store of bytes. `tests/models/test_blobs.py` is what every one must pass."""

    def writer(self, *, expected_bytes: int | None = None) -> BlobWriter:
        """Begin a new blob. `expected_bytes` is refused with `disk_full` when there is no room for it."""

    def put_file(self, path: Path, *, max_bytes: int | None = None) -> Blob:
        """Publish a copy of a file. Raises `Failure` with `internal` unless it is regular with one link, no symlink
        and no longer than `max_bytes`: what wrote it may be hostile."""

    def take_file(self, path: Path, blob: Blob) -> Blob:
        """Publish a file that we wrote ourselves and synced, and whose hash is known; it is gone from `path` then."""

    def stat(self, sha256: str) -> StoredBlob:
        """Raises `Failure` with `not_found`, and `ValueError` for what is no SHA-256 in hex."""

    def open(self, sha256: str) -> BinaryIO:
        """Read the bytes, from any position on. Raises as `stat` does; reading raises `Failure` with `file_damaged`
        for bytes that the store has lost."""

    def verify(self, sha256: str, seen: Callable[[bytes], object] = bytes) -> bool:
        """Whether the bytes are there and still have their hash; reads all of them, and shows each `CHUNK_BYTES` of
        them to `seen`."""

    def delete(self, sha256: str, *, version: str | None = None) -> bool:
        """Forget the bytes; `False`: they were not there, or not in this `version`. No row may name them any more."""

    def scan(self) -> Iterator[StoredBlob]:
        """All that is stored, each hash once; what comes or goes meanwhile may be missed."""

    def clean(self, *, older_than_seconds: float) -> int:
        """Remove what writers that died left behind; returns how many files."""

    def ping(self) -> None:
        """Raises `Failure` or `OSError` when nothing could be written now."""


class FolderBlobs:
    """Blobs in a folder, the staging area on the same filesystem."""

    def __init__(self, folder: Path, *, keep_free_bytes: int = 64 << 20) -> None:
        self.folder = folder
        self.staging = folder / "staging"
        self.keep_free_bytes = keep_free_bytes
        self.staging.mkdir(parents=True, exist_ok=True)

    def writer(self, *, expected_bytes: int | None = None) -> FolderWriter:
        free = shutil.disk_usage(self.staging).free
        if (expected_bytes or 0) + self.keep_free_bytes > free:
            raise disk_full()
        return FolderWriter(self)

    def put_file(self, path: Path, *, max_bytes: int | None = None) -> Blob:
        return copy_in(self, path, max_bytes)

    def take_file(self, path: Path, blob: Blob) -> Blob:
        target = self.path(blob.sha256)
        with disk_full_is_a_failure():
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._locked(fcntl.LOCK_SH):
                os.utime(path)  # the moment of publishing, which makes the version
                os.rename(path, target)
            for folder in (target.parent, target.parent.parent, self.folder):
                sync_folder(folder)
        return Blob(blob.sha256, blob.size_bytes)

    def path(self, sha256: str) -> Path:
        """Where the bytes lie, or would lie. Raises `ValueError` for what is no SHA-256 in hex."""
        return self.folder / require_sha256(sha256)[:2] / sha256[2:4] / sha256

    def stat(self, sha256: str) -> StoredBlob:
        try:
            return _stored(sha256, self.path(sha256).stat())
        except FileNotFoundError:
            raise gone(sha256) from None

    def open(self, sha256: str) -> BinaryIO:
        try:
            return io.BufferedReader(_DiskFile(self.path(sha256)))
        except FileNotFoundError:
            raise gone(sha256) from None

    def verify(self, sha256: str, seen: Callable[[bytes], object] = bytes) -> bool:
        return reads_back(self, sha256, seen)

    def delete(self, sha256: str, *, version: str | None = None) -> bool:
        path = self.path(sha256)
        # The lock, because between the look and the unlink nobody may publish the same bytes again.
        with self._locked(fcntl.LOCK_EX):
            try:
                if version is not None and _stored(sha256, path.stat()).version != version:
                    return False
                path.unlink()
            except FileNotFoundError:
                return False
        sync_folder(path.parent)
        return True

    def scan(self) -> Iterator[StoredBlob]:
        for path in self.folder.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
            if _SHA256.fullmatch(path.name):
                with suppress(FileNotFoundError):  # deleted in this moment
                    yield _stored(path.name, path.stat())

    def clean(self, *, older_than_seconds: float) -> int:
        limit = time.time() - older_than_seconds
        removed = 0
        for entry in os.scandir(self.staging):
            with suppress(FileNotFoundError):  # its writer finished in this moment
                if entry.stat(follow_symlinks=False).st_mtime < limit:
                    os.unlink(entry.path)
                    removed += 1
        return removed

    def ping(self) -> None:
        with self.writer() as writer:
            writer.write(b"ready")

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        """`flock`, which ends with the process that holds it. Opened anew each time: threads share what they share."""
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, mode)
            yield
        finally:
            os.close(descriptor)


class FolderWriter:
    """One blob on its way into a `FolderBlobs`. Not for use by several threads at once."""

    def __init__(self, store: FolderBlobs) -> None:
        self._store = store
        self._path = store.staging / uuid4().hex
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        with disk_full_is_a_failure():
            self._file = os.fdopen(os.open(self._path, _NEW, 0o640), "wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        with disk_full_is_a_failure():
            while view:
                view = view[self._file.write(view) or 0 :]
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def sha256(self) -> str:
        return self._digest.hexdigest()

    def publish(self) -> Blob:
        blob = Blob(self.sha256(), self.size_bytes)
        with disk_full_is_a_failure():
            os.fsync(self._file.fileno())
        return self._store.take_file(self._path, blob)


class _DiskFile(io.FileIO):
    """What the disk cannot read any more is damaged."""

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with _unreadable_is_damaged():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _unreadable_is_damaged():
            return super().readall()


@contextmanager
def _unreadable_is_damaged() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Failure(Code.FILE_DAMAGED, "The stored file is damaged: the disk cannot read it.") from error


def require_sha256(text: str) -> str:
    """Raises `ValueError` for what is no SHA-256 in hex."""
    if not _SHA256.fullmatch(text):
        raise ValueError(f"no SHA-256: {text!r}")
    return text


def gone(sha256: str) -> Failure:
    """For bytes that are not stored."""
    return Failure(Code.NOT_FOUND, "These bytes are not stored any more.", where=sha256)


def copy_in(store: Blobs, path: Path, max_bytes: int | None) -> Blob:
    """What `Blobs.put_file` does, with any store."""
    with _opened(path) as source, store.writer(expected_bytes=os.fstat(source.fileno()).st_size) as target:
        while chunk := source.read(CHUNK_BYTES):
            target.write(chunk)
            if max_bytes is not None and target.size_bytes > max_bytes:
                raise Failure(Code.INTERNAL, f"The file is longer than {max_bytes} bytes.", where=path.name)
        return target.publish()


def reads_back(store: Blobs, sha256: str, seen: Callable[[bytes], object]) -> bool:
    """What `Blobs.verify` does, with any store."""
    digest = hashlib.sha256()
    try:
        with store.open(sha256) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                seen(chunk)
    except Failure as failure:
        if failure.code not in (Code.NOT_FOUND, Code.FILE_DAMAGED):
            raise
        return False
    return digest.hexdigest() == sha256


def _stored(sha256: str, status: os.stat_result) -> StoredBlob:
    version = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
    return StoredBlob(sha256, status.st_size, version, datetime.fromtimestamp(status.st_mtime, UTC))


def disk_full() -> Failure:
    """For a store without room."""
    return Failure(Code.DISK_FULL, "There is no room for these bytes on the disk of the blob store.")


@contextmanager
def disk_full_is_a_failure() -> Iterator[None]:
    """What the operating system says of a disk or a quota without room becomes a `Failure` with `disk_full`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise disk_full() from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file that may be written by somebody hostile: O_NONBLOCK, so that a FIFO cannot hang us."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(Code.INTERNAL, f"The file cannot be opened: {error.strerror}.", where=path.name) from error
    try:
        status = os.fstat(descriptor)
        if not S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Failure(Code.INTERNAL, "The file must be a regular one with one link.", where=path.name)
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)
