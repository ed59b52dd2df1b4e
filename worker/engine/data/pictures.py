"""Encoded images by position: members of a zip, or stretches of any file. Nothing is decoded here."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from worker.engine.data.archive import UNREADABLE

MAX_FILE_BYTES = 256 << 20


class BadImage(Exception):
    """An image that is skipped; the text says why."""


class Pictures(Protocol):
    """`names` are for people, one an image; `read` gives the bytes of one, in several threads at a time, and raises
    BadImage with the reason."""

    @property
    def names(self) -> Sequence[str]: ...

    def read(self, index: int) -> bytes: ...


class ZippedPictures:
    """Members of a zip that stays open."""

    def __init__(self, archive: zipfile.ZipFile, names: Sequence[str]) -> None:
        self.archive = archive
        self.names = names
        self._one_at_a_time = threading.Lock()  # an archive counts its open members without one

    def read(self, index: int) -> bytes:
        member = self.archive.getinfo(self.names[index])
        _check_size(member.file_size)
        try:
            with self._one_at_a_time:
                return self.archive.read(member)
        except UNREADABLE as error:
            raise BadImage(f"it cannot be read ({type(error).__name__}: {error})") from error


class SlicedPictures:
    """Stretches of a file that stays open: `starts` and `sizes` in bytes. A `scratch` file lives as long."""

    def __init__(
        self, path: Path, names: Sequence[str], starts: Sequence[int], sizes: Sequence[int], *, scratch: object = None
    ) -> None:
        self.file, self.scratch = path.open("rb"), scratch
        self.names, self.starts, self.sizes = names, starts, sizes

    def read(self, index: int) -> bytes:
        size = int(self.sizes[index])
        _check_size(size)
        content = os.pread(self.file.fileno(), size, int(self.starts[index]))
        if len(content) != size:
            raise BadImage(f"only {len(content)} of its {size} bytes are there")
        return content


def begins_like_an_image(head: bytes) -> bool:
    """Whether the first sixteen bytes are those of a PNG, JPEG, BMP or WebP."""
    return head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"BM")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _check_size(size_bytes: int) -> None:
    if size_bytes == 0 or size_bytes > MAX_FILE_BYTES:
        raise BadImage(f"the file has {size_bytes} bytes")
