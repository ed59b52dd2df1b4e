"""Bytes by their SHA-256. Every writer publishes the same way: readers see a whole file or none, whatever dies when.

`staging/<uuid>` is created exclusively and hashed while it is written; then fsync, rename to `ab/cd/<sha256>`, fsync of
the folders. Bytes come before the row that names them, and go after it (RELIABILITY, part 3).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Blob:
    """Published bytes: `sha256` as 64 hex digits."""

    sha256: str
    size_bytes: int


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

    def publish(self) -> Blob:
        """Make the bytes durable and visible under their hash."""


class Blobs(Protocol):
    """A store of bytes. `tests/models/test_blobs.py` is what every one must pass."""

    def writer(self, *, expected_bytes: int | None = None) -> BlobWriter:
        """Begin a new blob. `expected_bytes` is refused with `disk_full` when there is no room for it."""

    def put_file(self, path: Path, *, max_bytes: int | None = None) -> Blob:
        """Publish a copy of a file. Raises `Failure` with `internal` unless it is regular with one link, no symlink
        and no longer than `max_bytes`: what wrote it may be hostile."""

    def path(self, sha256: str) -> Path:
        """A local file with the bytes, to read only."""

    def open(self, sha256: str) -> BinaryIO:
        """Read the bytes. Raises `Failure` with `not_found`."""

    def verify(self, sha256: str) -> bool:
        """Whether the bytes are there and still have their hash; reads all of them."""

    def delete(self, sha256: str) -> bool:
        """Forget the bytes; `False`: they were not there. No row may name them any more."""

    def clean(self, *, older_than_seconds: float) -> int:
        """Remove what writers that died left behind; returns how many files."""


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
            raise _disk_full()
        return FolderWriter(self)

    def put_file(self, path: Path, *, max_bytes: int | None = None) -> Blob:
        with _opened(path) as source, self.writer(expected_bytes=os.fstat(source.fileno()).st_size) as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
                if max_bytes is not None and target.size_bytes > max_bytes:
                    raise Failure(Code.INTERNAL, f"The file is longer than {max_bytes} bytes.", where=path.name)
            return target.publish()

    def path(self, sha256: str) -> Path:
        """Where the bytes lie, or would lie. Raises `ValueError` for what is no SHA-256 in hex."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"no SHA-256: {sha256!r}")
        return self.folder / sha256[:2] / sha256[2:4] / sha256

    def open(self, sha256: str) -> BinaryIO:
        try:
            return self.path(sha256).open("rb")
        except FileNotFoundError:
            raise Failure(Code.NOT_FOUND, "These bytes are not stored any more.", where=sha256) from None

    def verify(self, sha256: str) -> bool:
        try:
            with self.path(sha256).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except FileNotFoundError:
            return False

    def delete(self, sha256: str) -> bool:
        path = self.path(sha256)
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        _sync_folder(path.parent)
        return True

    def clean(self, *, older_than_seconds: float) -> int:
        limit = time.time() - older_than_seconds
        removed = 0
        for entry in os.scandir(self.staging):
            with suppress(FileNotFoundError):  # its writer finished in this moment
                if entry.stat(follow_symlinks=False).st_mtime < limit:
                    os.unlink(entry.path)
                    removed += 1
        return removed


class FolderWriter:
    """One blob on its way into a `FolderBlobs`. Not for use by several threads at once."""

    def __init__(self, store: FolderBlobs) -> None:
        self._store = store
        self._path = store.staging / uuid4().hex
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        with _disk_full_is_a_failure():
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
        with _disk_full_is_a_failure():
            while view:
                view = view[self._file.write(view) or 0 :]
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def publish(self) -> Blob:
        blob = Blob(self._digest.hexdigest(), self.size_bytes)
        target = self._store.path(blob.sha256)
        with _disk_full_is_a_failure():
            os.fsync(self._file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self._path, target)
            for folder in (target.parent, target.parent.parent, self._store.folder):
                _sync_folder(folder)
        return blob


def _disk_full() -> Failure:
    return Failure(Code.DISK_FULL, "There is no room for these bytes on the disk of the blob store.")


@contextmanager
def _disk_full_is_a_failure() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _disk_full() from error


def _sync_folder(folder: Path) -> None:
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
