"""Uploads against what any upload must at least do: read the file, hash it, write it."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from statistics import median

import numpy as np

from bench.row import Row
from modelpress import Client

MEGABYTES = 256
ROUNDS = 3
CHUNK_BYTES = 1 << 20


def uploads(client: Client, folder: Path) -> list[Row]:
    """Each round does both, so that whatever else the machine does falls on both."""
    file = folder / "bytes.npz"
    values = np.random.default_rng(0).integers(0, 256, (MEGABYTES, 1_000_000), dtype=np.uint8)
    np.savez(file, x=values)
    megabytes = file.stat().st_size / 1e6
    sent, copied = [], []
    for _ in range(ROUNDS):
        copied.append(megabytes / _copy(file, folder / "copy"))
        began = time.monotonic()
        upload = client.datasets.upload(file, wait=False)
        sent.append(megabytes / (time.monotonic() - began))
        client.datasets.wait(upload.id)
        client.datasets.delete(upload.id)
    ratio = median(one / other for one, other in zip(sent, copied, strict=True))
    return [
        Row(f"upload of {megabytes:.0f} MB over HTTP", median(sent), "MB/s", ratio),
        Row("read, SHA-256, write and sync of the same file", median(copied), "MB/s", None),
    ]


def _copy(file: Path, target: Path) -> float:
    began = time.monotonic()
    hashed = hashlib.sha256()
    with file.open("rb") as source, target.open("wb") as sink:
        while piece := source.read(CHUNK_BYTES):
            hashed.update(piece)
            sink.write(piece)
        sink.flush()
        os.fsync(sink.fileno())
    return time.monotonic() - began
