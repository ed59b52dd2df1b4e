"""From a packed safetensors file to the `.pt2` archive it stands for, bit for bit. Needs numpy, and no torch.

`client/modelpress/unpack.py` is this file, so that what proves a job's result is what its owner loads it with.

A packed file is a safetensors file; its metadata has the version of the layout under the name of the format. The entry
`.program` is a zip archive of everything in the `.pt2` but the weights, `.manifest` deflated JSON: the folder of the
weights in the archive, and for each its file, its name and its codec with what that needs to know, or its type where it
is `dense`. The parts of a codec are entries of their own, `name.part`; a dense weight is the entry `name`. Parts for
which an entry's line in the header would be much lie one after the other in `.small`, in the order of the manifest,
which says the bytes of each. A part is stored as it is, under its own type, or in `planes`: plane k has the k-th byte
of each of its items and is deflated when it is shorter than their count.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "modelpress-packed"
LAYOUT = "3"
PROGRAM, MANIFEST, SMALL = ".program", ".manifest", ".small"
MANIFEST_BYTES = 1 << 28
"""More is in none."""

Bytes = NDArray[np.uint8]


def unpack(path: str | os.PathLike[str]) -> io.BytesIO:
    """The `.pt2` archive in memory, for `torch.export.load`. Raises ValueError for a file that is not packed so."""
    packed = Packed(path)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        with zipfile.ZipFile(io.BytesIO(packed.entry(PROGRAM).tobytes())) as program:
            for name in program.namelist():
                target.writestr(name, program.read(name))
        for weight, stored in packed.weights():
            planes = weight.get("planes", {})
            parts = {part: _joined(content, planes.get(part)) for part, content in stored.items()}
            content = codec_of(weight).decode(parts, weight)
            target.writestr(f"{packed.manifest['folder']}/{weight['file']}", content)
    archive.seek(0)
    return archive


class Packed:
    """A packed file, mapped. Raises ValueError for a file that is none."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = np.memmap(path, np.uint8, mode="r")
        self._start = 8 + int.from_bytes(self._file[:8].tobytes(), "little")
        self._entries: dict[str, Any] = json.loads(self._file[8 : self._start].tobytes())
        if self._entries.get("__metadata__", {}).get(FORMAT) != LAYOUT:
            raise ValueError(f"not a file of the format {FORMAT}, layout {LAYOUT}: another modelpress may read it")
        try:
            manifest = zlib.decompressobj().decompress(self.entry(MANIFEST).tobytes(), MANIFEST_BYTES)
            self.manifest: dict[str, Any] = json.loads(manifest)
        except (KeyError, zlib.error) as error:
            raise ValueError(f"a damaged file of the format {FORMAT}") from error

    def entry(self, name: str) -> Bytes:
        begin, end = self._entries[name]["data_offsets"]
        return np.asarray(self._file[self._start + begin : self._start + end])

    def weights(self) -> Iterator[tuple[dict[str, Any], dict[str, Bytes]]]:
        """Every weight's row in the manifest, and its parts as they are stored."""
        small, begin = self.entry(SMALL), 0
        for weight in self.manifest["weights"]:
            codec, parts = codec_of(weight), {}
            for part in codec.parts:
                size = weight.get("small", {}).get(part)
                if size is None:
                    parts[part] = self.entry(entry_of(weight["name"], part, codec))
                else:
                    parts[part] = small[begin : begin + size]
                    begin += size
            yield weight, parts


def codec_of(weight: Mapping[str, Any]) -> Codec:
    return CODECS[weight.get("codec", DENSE)]


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


def _dense(parts: Mapping[str, Bytes], row: Mapping[str, Any]) -> bytes:
    """`values`: every item."""
    return parts["values"].tobytes()


def _bitmask(parts: Mapping[str, Bytes], row: Mapping[str, Any]) -> bytes:
    """`mask`: a bit for each of `items`, the lowest of a byte first, set where it is not zero. `values`: those items,
    of `item_bytes` each."""
    items, item_bytes = row["items"], row["item_bytes"]
    whole = np.zeros((items, item_bytes), np.uint8)
    whole[np.unpackbits(parts["mask"], count=items, bitorder="little") == 1] = parts["values"].reshape(-1, item_bytes)
    return whole.tobytes()


def _grid(parts: Mapping[str, Bytes], row: Mapping[str, Any]) -> bytes:
    """Weights `(spacing * code - offset - zero) * scale * unit` of the `shape` in `row`, single precision: a `scale`
    (half precision) and maybe a `zero` (a byte) for each `group` side by side in a row of dimension 0, one `unit` for
    all."""
    rows = row["shape"][0]
    steps = _codes(parts["codes"], row).astype(np.float32).reshape(rows, -1) * np.float32(row["spacing"])
    steps -= np.float32(row["offset"])
    if "zero" in parts:
        steps -= _spread(parts["zero"].astype(np.float32), row, steps.shape)
    scale = _view(parts["scale"], "<f2").astype(np.float32) * _view(parts["unit"], "<f4")
    return (steps * _spread(scale, row, steps.shape)).astype("<f4").tobytes()


def _spread(table: NDArray[np.float32], row: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.repeat(table.reshape(shape[0], -1), row["group"], axis=1)[:, : shape[1]]


def _codebook(parts: Mapping[str, Bytes], row: Mapping[str, Any]) -> bytes:
    """`codebook`: so many entries of `dimension` weights in single precision; a code is the place of one. What is more
    than the `items` of the weight is left out."""
    table = _view(parts["codebook"], "<f4").reshape(-1, row["dimension"])
    return table[_codes(parts["codes"], row)].reshape(-1)[: row["items"]].astype("<f4").tobytes()


def _codes(stored: Bytes, row: Mapping[str, Any]) -> NDArray[np.int64]:
    """`count` codes below `levels`, a byte each where the row says `in_bytes`; else a stream of bits, the lowest of a
    code and of a byte first, or for three levels five ternary digits in a byte, the lowest first."""
    count, levels = row["count"], row["levels"]
    if row.get("in_bytes"):
        return stored.astype(np.int64)
    if levels == 3:
        return (stored.astype(np.int64)[:, None] // 3 ** np.arange(5) % 3).reshape(-1)[:count]
    bits = (levels - 1).bit_length()
    stream = np.unpackbits(stored, count=count * bits, bitorder="little").reshape(count, bits)
    return stream @ (1 << np.arange(bits))


def _view(stored: Bytes, dtype: str) -> NDArray[Any]:
    return np.frombuffer(stored.tobytes(), dtype)


@dataclass(frozen=True)
class Codec:
    """`decode` takes the bytes of `parts` and the weight's row in the manifest; the weight's bytes come back."""

    parts: tuple[str, ...]
    decode: Callable[[Mapping[str, Bytes], Mapping[str, Any]], bytes]


DENSE = "dense"
CODECS: dict[str, Codec] = {
    DENSE: Codec(("values",), _dense),
    "bitmask": Codec(("mask", "values"), _bitmask),
    "grid": Codec(("codes", "scale", "unit"), _grid),
    "grid_with_zero": Codec(("codes", "scale", "unit", "zero"), _grid),
    "codebook": Codec(("codes", "codebook"), _codebook),
}
