"""Bytes between the blob store and a run's folder, hashed on every way."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from models.blobs import CHUNK_BYTES, Blob, Blobs
from models.errors import Code, Failure
from worker.workplace import take_out

MAX_FILE_BYTES = 64 << 30


def bring_in(blobs: Blobs, sha256: str, target: Path) -> Path:
    """Copy a blob to `target`, read-only. A copy, so that no engine can touch the store.

    Raises `Failure` when the bytes are gone, or are not what they were when they were stored.
    """
    digest = hashlib.sha256()
    with blobs.open(sha256) as source, target.open("xb") as file:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != sha256:
        target.unlink()
        raise Failure(Code.FILE_DAMAGED, "The stored file is damaged; upload it again.", where=sha256)
    target.chmod(0o400)
    return target


def publish(blobs: Blobs, folder: Path, name: str) -> Blob:
    """Copy out what the engine says it wrote at `name` in `folder`. Raises `Failure`, also with `disk_full`."""
    with take_out(folder, name, MAX_FILE_BYTES) as source:
        size = os.fstat(source.fileno()).st_size
        with blobs.writer(expected_bytes=size) as target:
            left = size
            while left > 0 and (chunk := source.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                target.write(chunk)
            return target.publish()
