"""The bytes of resumable uploads on their way in: one file each, and its length is the offset.

No row says how much has arrived, so nothing can disagree with the disk. A killed process loses nothing that the
operating system took from it; what an answer acknowledged was synced before, and outlives a power cut as well.
Whoever writes, publishes or removes a file holds its lock (`flock`), which ends with the process that held it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from models.blobs import CHUNK_BYTES, disk_full, disk_full_is_a_failure, sync_folder
from models.ids import is_id
from models.settings import Settings

PREFIX = "upl"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


def incoming_folder(settings: Settings) -> Path:
    """The setting `incoming`; by default inside the blobs' folder, and so on their file system."""
    if settings.incoming is not None:
        return settings.incoming
    return (settings.work if "://" in settings.blobs else Path(settings.blobs)) / "incoming"


class Incoming:
    """A folder of files under way. Where blobs are a folder too, on the same file system: publishing moves no byte."""

    def __init__(self, folder: Path, *, keep_free_bytes: int = 64 << 20) -> None:
        self.folder = folder
        self.keep_free_bytes = keep_free_bytes
        self.folder.mkdir(parents=True, exist_ok=True)

    def refuse_without_room(self, size_bytes: int) -> None:
        """Raises `Failure` with `disk_full`."""
        if size_bytes + self.keep_free_bytes > shutil.disk_usage(self.folder).free:
            raise disk_full()

    def path(self, upload_id: str) -> Path:
        if not is_id(upload_id, PREFIX):
            raise ValueError(f"no upload: {upload_id!r}")
        return self.folder / upload_id

    def size_bytes(self, upload_id: str) -> int:
        """How much has arrived; 0 also when nothing ever did."""
        try:
            return self.path(upload_id).stat().st_size
        except FileNotFoundError:
            return 0

    def hold(self, upload_id: str) -> IncomingFile | None:
        """Lock the file, which is made when it is not there; `None`: somebody else holds it."""
        path = self.path(upload_id)
        while True:
            with disk_full_is_a_failure():
                descriptor = os.open(path, _FLAGS | os.O_CREAT, 0o640)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                return IncomingFile(path, descriptor)
            os.close(descriptor)  # who held it before removed or published it in this moment

    def abandoned(self, *, older_than_seconds: float) -> Iterator[str]:
        """The uploads whose files nobody touched for so long."""
        limit = time.time() - older_than_seconds
        for entry in os.scandir(self.folder):
            if is_id(entry.name, PREFIX) and entry.stat(follow_symlinks=False).st_mtime < limit:
                yield entry.name


class IncomingFile:
    """A file under way, locked until the block ends. Not for use by several threads at once."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self.size_bytes = os.fstat(descriptor).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def state(self) -> tuple[int, ...]:
        """Changes whenever anybody writes: the same state is the same bytes."""
        status = os.fstat(self._descriptor)
        return status.st_ino, status.st_size, status.st_mtime_ns

    def append(self, chunk: bytes) -> None:
        """Raises `Failure` with `disk_full`; what was written before that stays and counts."""
        view = memoryview(chunk)
        with disk_full_is_a_failure():
            while view:
                written = os.pwrite(self._descriptor, view, self.size_bytes)
                self.size_bytes += written
                view = view[written:]

    def truncate(self, size_bytes: int) -> None:
        os.ftruncate(self._descriptor, size_bytes)
        self.size_bytes = size_bytes

    def sync(self) -> None:
        """Make bytes and name durable."""
        with disk_full_is_a_failure():
            os.fsync(self._descriptor)
            sync_folder(self.path.parent)

    def head(self, size_bytes: int) -> bytes:
        return os.pread(self._descriptor, size_bytes, 0)

    def sha256(self) -> str:
        """Reads all of it."""
        digest, at = hashlib.sha256(), 0
        while chunk := os.pread(self._descriptor, CHUNK_BYTES, at):
            digest.update(chunk)
            at += len(chunk)
        return digest.hexdigest()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False
