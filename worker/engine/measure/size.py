"""How many bytes a file takes."""

from __future__ import annotations

import zlib
from pathlib import Path

_PIECE = 1 << 20


def file_size_bytes(path: Path) -> int:
    return path.stat().st_size


def gzip_size_bytes(path: Path) -> int:
    """Bytes after gzip at level 6, its default; nothing is written."""
    packer = zlib.compressobj(level=6, wbits=31)
    size = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            size += len(packer.compress(piece))
    return size + len(packer.flush())
