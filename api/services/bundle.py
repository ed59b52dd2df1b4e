"""All files of a job as one tar, made while it is sent: nothing is stored twice, and where each byte stands is known
beforehand, so that ranges work and the same files give the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from bisect import bisect_right
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from api.deps import Service
from api.services import artifacts
from models.tables import Artifact

MANIFEST = "artifacts.json"
"""Inside, what `modelpress fetch` writes beside files: their sizes and hashes, which `modelpress.load` checks."""


class Bundle(NamedTuple):
    """`parts` are bytes or files that are opened when it is read; `tag` identifies the content."""

    name: str
    tag: str
    size_bytes: int
    parts: list[bytes | Artifact]


def plan(service: Service, tenant: str, job_id: str) -> Bundle:
    """What the tar of a job is made of. Raises `Failure` with `not_found` and `not_ready`."""
    rows = artifacts.every(service, tenant, job_id)
    listed = [artifacts.view(row).model_dump(exclude={"url"}) for row in rows]
    manifest = json.dumps({"job": job_id, "artifacts": listed}, indent=1).encode() + b"\n"
    parts: list[bytes | Artifact] = [_header(job_id, MANIFEST, len(manifest)) + manifest + _padding(len(manifest))]
    for row in rows:
        parts += [_header(job_id, row.name, row.size_bytes), row, _padding(row.size_bytes)]
    parts.append(bytes(2 * tarfile.BLOCKSIZE))
    tag = hashlib.sha256()
    for part in parts:
        tag.update(part if isinstance(part, bytes) else part.sha256.encode())
    return Bundle(f"{job_id}.tar", tag.hexdigest(), sum(map(_size, parts)), parts)


def open_bundle(service: Service, bundle: Bundle) -> BinaryIO:
    """Every file of it checked and opened. Raises `Failure` with `file_damaged` for damaged or lost bytes."""
    opened: list[BinaryIO] = []
    try:
        for part in bundle.parts:
            opened.append(io.BytesIO(part) if isinstance(part, bytes) else artifacts.download(service, part).file)
    except BaseException:
        for file in opened:
            file.close()
        raise
    return io.BufferedReader(_Joined(opened, [_size(part) for part in bundle.parts]), 1 << 16)


def _size(part: bytes | Artifact) -> int:
    return len(part) if isinstance(part, bytes) else part.size_bytes


def _header(folder: str, name: str, size_bytes: int) -> bytes:
    """Without times, owners or anything else that differs from one tar to the next."""
    member = tarfile.TarInfo(f"{folder}/{name}")
    member.size, member.mode = size_bytes, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % tarfile.BLOCKSIZE)


class _Joined(io.RawIOBase):
    """Files read one behind the other, as if they were one."""

    def __init__(self, files: Sequence[BinaryIO], sizes: Sequence[int]) -> None:
        self._files = files
        self._starts = [sum(sizes[:place]) for place in range(len(sizes) + 1)]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if self._at >= self._starts[-1]:
            return 0
        place = bisect_right(self._starts, self._at) - 1
        file = self._files[place]
        file.seek(self._at - self._starts[place])
        piece = file.read(min(len(buffer), self._starts[place + 1] - self._at))
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
