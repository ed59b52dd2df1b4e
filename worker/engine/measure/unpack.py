"""From a packed safetensors file to the `.pt2` archive it stands for, bit for bit. Needs numpy, and no torch.

`client/modelpress/unpack.py` is this file, so that what proves a job's result is what its owner loads it with.

A packed file is a safetensors file. The entry `.program` is a zip archive of everything in the `.pt2` but the weights.
Its metadata has a manifest under the name of the format: the version of the layout, the folder of the weights in the
archive, and for each its file, its name and, unless it is `dense`, its codec, how many items it has and the bytes of
one. The parts of a codec are entries
of their own, `name.part`; a dense weight is the entry `name`. A part is stored as it is, under its own type, or in
`planes`: plane k has the k-th byte of each of its items and is deflated when it is shorter than their count.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "modelpress-packed"
LAYOUT = 1
PROGRAM = ".program"

Bytes = NDArray[np.uint8]


def unpack(path: str | os.PathLike[str]) -> io.BytesIO:
    """The `.pt2` archive in memory, for `torch.export.load`. Raises ValueError for a file that is not packed so."""
    file = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    entries: dict[str, Any] = json.loads(file[8:start].tobytes())
    manifest = json.loads(entries.get("__metadata__", {}).get(FORMAT, "{}"))
    if manifest.get("layout") != LAYOUT:
        raise ValueError(f"not a file of the format {FORMAT}, layout {LAYOUT}: a newer modelpress may read it")

    def stored(entry: str) -> Bytes:
        begin, end = entries[entry]["data_offsets"]
        return np.asarray(file[start + begin : start + end])

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        with zipfile.ZipFile(io.BytesIO(stored(PROGRAM).tobytes())) as program:
            for name in program.namelist():
                target.writestr(name, program.read(name))
        for weight in manifest["weights"]:
            codec = CODECS[weight.get("codec", DENSE)]
            parts = {
                part: _joined(stored(entry_of(weight["name"], part, codec)), weight.get("planes", {}).get(part))
                for part in codec.parts
            }
            content = codec.decode(parts, weight.get("items", 0), weight.get("item_bytes", 1))
            target.writestr(f"{manifest['folder']}/{weight['file']}", content)
    archive.seek(0)
    return archive


def entry_of(name: str, part: str, codec: Codec) -> str:
    """Where a part of the weight `name` is stored."""
    return name if codec is CODECS[DENSE] else f"{name}.{part}"


def _joined(data: Bytes, planes: Mapping[str, Any] | None) -> Bytes:
    """A part as it was before its planes were taken apart."""
    if planes is None:
        return data
    joined = np.empty((planes["items"], len(planes["bytes"])), np.uint8)
    begin = 0
    for column, size in zip(joined.T, planes["bytes"], strict=True):
        plane = data[begin : begin + size]
        if size < len(column):
            plane = np.frombuffer(zlib.decompressobj().decompress(plane.tobytes(), len(column)), np.uint8)
        column[:] = plane
        begin += size
    return joined.reshape(-1)


def _dense(parts: Mapping[str, Bytes], items: int, item_bytes: int) -> bytes:
    """`values`: every item."""
    return parts["values"].tobytes()


def _bitmask(parts: Mapping[str, Bytes], items: int, item_bytes: int) -> bytes:
    """`mask`: a bit an item, the lowest of a byte first, set where it is not zero. `values`: those items."""
    whole = np.zeros((items, item_bytes), np.uint8)
    whole[np.unpackbits(parts["mask"], count=items, bitorder="little") == 1] = parts["values"].reshape(-1, item_bytes)
    return whole.tobytes()


@dataclass(frozen=True)
class Codec:
    """`decode` takes the bytes of `parts`, how many items the weight has and the bytes of one; its bytes come back."""

    parts: tuple[str, ...]
    decode: Callable[[Mapping[str, Bytes], int, int], bytes]


DENSE = "dense"
CODECS: dict[str, Codec] = {
    DENSE: Codec(("values",), _dense),
    "bitmask": Codec(("mask", "values"), _bitmask),
}
