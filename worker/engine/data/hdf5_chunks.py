"""Chunks of an HDF5 dataset, found by the library but read and decoded here: its own filters crash on damaged ones.

Sources: The HDF5 Group, HDF5 File Format Specification 3.0, IV.A.2.l (filters); LibLZF by Marc Lehmann (format).
"""

from __future__ import annotations

import struct
import zlib
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from worker.engine.data.npy import Array
from worker.engine.data.spool import IN_MEMORY_BYTES, mapped_scratch

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
FILTERS = frozenset({DEFLATE, SHUFFLE, FLETCHER32, LZF})
_CHECKSUM_BYTES = 4
_WORDS_AT_ONCE = 1 << 16


def read_chunks(path: Path, dataset: h5py.Dataset, dtype: np.dtype[Any]) -> Array:
    """All elements as `dtype`, which is how they are stored; what was never written is the fill value. Beyond 32 MiB
    they lie in a file of the scratch folder (TMPDIR), which goes with the array.

    Raises ValueError for a broken file, Failure(DISK_FULL).
    """
    chunk, properties, end = dataset.chunks, dataset.id.get_create_plist(), path.stat().st_size
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    stored: list[Any] = []
    dataset.id.chunk_iter(stored.append)
    missing = chunks_of(dataset) - len(stored)
    if missing < 0:
        raise ValueError("it has the same chunk twice")
    array = _room(dataset.shape, dtype)
    if missing and (fill := _fill_value(dataset, dtype)):
        array[...] = fill
    with path.open("rb") as file:
        for each in stored:
            if each.byte_offset + each.size > end:
                raise ValueError("it ends before its data")
            file.seek(each.byte_offset)
            content = decoded(file.read(each.size), filters, each.filter_mask, prod(chunk) * dtype.itemsize)
            place = array[tuple(map(slice, each.chunk_offset, map(int.__add__, each.chunk_offset, chunk)))]
            place[...] = np.frombuffer(content, dtype).reshape(chunk)[tuple(map(slice, place.shape))]
    array.flags.writeable = False
    return array


def _room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Zeros, of this machine's byte order."""
    dtype = dtype.newbyteorder("=")
    if prod(shape) * dtype.itemsize <= IN_MEMORY_BYTES:
        return np.zeros(shape, dtype)
    return mapped_scratch(dtype, shape)


def _fill_value(dataset: h5py.Dataset, dtype: np.dtype[Any]) -> Any:
    """None where it is zeros, or nothing."""
    is_own = dataset.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    return np.asarray(dataset.fillvalue).astype(dtype)[()] if is_own and not dtype.names else None


def chunks_of(dataset: h5py.Dataset) -> int:
    """How many there are where all is written."""
    return prod(-(-size // length) for size, length in zip(dataset.shape, dataset.chunks, strict=True))


def decoded(content: bytes, filters: list[tuple[int, int, tuple[int, ...], bytes]], skipped: int, size: int) -> bytes:
    """A chunk as it was before the filters were applied, in their order; bit i of `skipped`: filter i was not.

    Raises ValueError unless it has `size` bytes then.
    """
    most = size + _CHECKSUM_BYTES * len(filters)
    for place, (kind, _, values, _) in reversed(list(enumerate(filters))):
        if skipped >> place & 1:
            continue
        if kind == DEFLATE:
            content = _inflated(content, most)
        elif kind == LZF:
            content = _expanded(content, most)
        elif kind == SHUFFLE:
            content = _unshuffled(content, values[0] if values else 1)
        else:
            content = _checked(content)
    if len(content) != size:
        raise ValueError(f"a chunk has {len(content)} bytes, not {size}")
    return content


def _inflated(content: bytes, most: int) -> bytes:
    try:
        found = zlib.decompressobj().decompress(content, most + 1)
    except zlib.error as error:
        raise ValueError(f"a compressed chunk is damaged ({error})") from error
    return found


def _unshuffled(content: bytes, width: int) -> bytes:
    """Of elements of `width` bytes: all first bytes, all second ones …; what is left over is at the end."""
    whole = len(content) // max(width, 1) * width
    if whole <= width:
        return content
    planes = np.frombuffer(content, np.uint8, whole).reshape(width, -1)
    return planes.T.tobytes() + content[whole:]


def _checked(content: bytes) -> bytes:
    """Without its Fletcher checksum, which must be right; old libraries wrote each half the other way round."""
    if len(content) < _CHECKSUM_BYTES:
        raise ValueError("a chunk has no checksum")
    body, said = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    high, low = divmod(fletcher32(body), 1 << 16)
    if said not in (struct.pack("<HH", low, high), struct.pack(">HH", low, high)):
        raise ValueError("a chunk is damaged: its checksum is wrong")
    return body


def fletcher32(content: bytes) -> int:
    """J. G. Fletcher, An Arithmetic Checksum for Serial Transmissions (1982), over big-endian words of 16 bits."""
    padded = content + b"\0" * (len(content) % 2)
    words = np.frombuffer(padded, ">u2").astype(np.uint64)
    first = second = 0
    for start in range(0, len(words), _WORDS_AT_ONCE):
        part = words[start : start + _WORDS_AT_ONCE]
        weights = np.arange(len(part), 0, -1, dtype=np.uint64)
        second += first * len(part) + int((part * weights).sum())
        first += int(part.sum())
        first, second = _folded(first), _folded(second)
    return second << 16 | first


def _folded(total: int) -> int:
    """Modulo 65535, with the one that is no zero, as sums of ones' complement are."""
    return (total - 1) % 0xFFFF + 1 if total else 0


def _expanded(content: bytes, most: int) -> bytes:
    """LibLZF: runs as they are, and repetitions of what came before."""
    found, place = bytearray(), 0
    while place < len(content) and len(found) <= most:
        control = content[place]
        place += 1
        if control < 32:
            found += content[place : place + control + 1]
            place += control + 1
            continue
        length = control >> 5
        rest = 2 if length == 7 else 1
        if place + rest > len(content):
            raise ValueError("a compressed chunk ends too early")
        if length == 7:
            length += content[place]
        back = (control & 31) << 8 | content[place + rest - 1]
        place, length = place + rest, length + 2
        start = len(found) - back - 1
        if start < 0:
            raise ValueError("a compressed chunk refers to what is before it")
        repeated = found[start : start + length]
        found += (repeated * -(-length // len(repeated)))[:length]
    return bytes(found)
