"""Stored bytes on their way out: never one that is not as it was published."""

from __future__ import annotations

import io
import threading
import time
import zlib
from array import array
from collections.abc import Callable
from typing import BinaryIO

from models.blobs import CHUNK_BYTES, Blobs, StoredBlob
from models.errors import Code, Failure

VERIFIED_SECONDS = 600.0
MAX_VERIFIED = 10_000


class VerifiedBlobs:
    """Remembers for ten minutes which versions of stored bytes were read whole and matched their SHA-256, with a
    CRC-32 of each piece: a disk that loses a bit makes no new version of the file."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, array[int]]] = {}
        self._lock = threading.Lock()

    def open(self, blobs: Blobs, stored: StoredBlob) -> BinaryIO:
        """The bytes, each piece of them checked again when it is read. Raises `Failure` with `file_damaged`, then or
        now, and as `Blobs.open` does."""
        checksums = self._checksums(stored)
        if checksums is None:
            checksums = array("I")
            add = checksums.append
            if not blobs.verify(stored.sha256, lambda piece: add(zlib.crc32(piece))):
                raise damaged()
            self._remember(stored, checksums)
        file = _CheckedFile(blobs.open(stored.sha256), checksums, lambda: self._forget(stored))
        return io.BufferedReader(file, CHUNK_BYTES)

    def _checksums(self, stored: StoredBlob) -> array[int] | None:
        with self._lock:
            at, checksums = self._known.get((stored.sha256, stored.version), (0.0, None))
            return checksums if at > time.monotonic() - VERIFIED_SECONDS else None

    def _remember(self, stored: StoredBlob, checksums: array[int]) -> None:
        with self._lock:
            if len(self._known) >= MAX_VERIFIED:
                self._known.clear()
            self._known[stored.sha256, stored.version] = time.monotonic(), checksums

    def _forget(self, stored: StoredBlob) -> None:
        with self._lock:
            self._known.pop((stored.sha256, stored.version), None)


def damaged() -> Failure:
    """For stored bytes that are not what they were."""
    return Failure(Code.FILE_DAMAGED, "The stored file is damaged and is not given out.")


class _CheckedFile(io.RawIOBase):
    """`checksums` are of each `CHUNK_BYTES` of `file`."""

    def __init__(self, file: BinaryIO, checksums: array[int], on_damage: Callable[[], None]) -> None:
        self._file, self._checksums, self._on_damage = file, checksums, on_damage
        self._at = 0
        self._number, self._piece = -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = self._at if whence == io.SEEK_CUR else 0
        if whence == io.SEEK_END:
            base = self._file.seek(0, io.SEEK_END)
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        number, skipped = divmod(self._at, CHUNK_BYTES)
        if number >= len(self._checksums):
            return 0
        if number != self._number:
            try:
                self._number, self._piece = number, self._checked(number)
            except Failure:
                self._on_damage()
                raise
        given = self._piece[skipped : skipped + len(buffer)]
        buffer[: len(given)] = given
        self._at += len(given)
        return len(given)

    def _checked(self, number: int) -> bytes:
        self._file.seek(number * CHUNK_BYTES)
        piece = self._file.read(CHUNK_BYTES)
        if zlib.crc32(piece) != self._checksums[number]:
            raise damaged()
        return piece

    def close(self) -> None:
        self._file.close()
        super().close()
