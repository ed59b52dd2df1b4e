"""Texts of any length in an HDF5 file, read without the library, whose own reader of them never ends on some files.

Source: The HDF5 Group, HDF5 File Format Specification 3.0, III.E (global heap) and IV.B (variable-length data).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from worker.engine.data.npy import Array, bad_array

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_COLLECTION, _OBJECT = struct.Struct("<4sB3xQ"), struct.Struct("<HHIQ")
MAX_CHARACTERS = 32
_BLOCK_ROWS = 65536


def check_references(dataset: h5py.Dataset) -> None:
    """Raises Failure(DATASET_BAD) where they are not as large as h5py writes them, or not data that lies in the file on
    its own: the library would follow those in a header itself."""
    in_header = dataset.id.get_create_plist().get_layout() == h5py.h5d.COMPACT
    if in_header or dataset.file.id.get_create_plist().get_sizes() != (8, 8):
        raise bad_array(
            "split",
            "is in a file of another layout than h5py writes",
            "save it as bytes of one length: `np.array(split, dtype='S5')`",
        )


def read_texts(path: Path, dataset: h5py.Dataset, references: Array) -> Array:
    """One text for each of `references` [samples], cut at 32 characters; those never written are empty.

    Raises ValueError for a broken file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        heap = _Heap(content, dataset.file.userblock_size)
        return in_blocks(references, lambda block: [heap.text(*each) for each in block.tolist()])


def in_blocks(values: Array, texts_of: Callable[[Array], list[str]]) -> Array:
    """`texts_of` some of `values` [samples] at a time, since Python's texts take more room than numpy's."""
    starts = range(0, len(values), _BLOCK_ROWS)
    return np.concatenate([np.array(texts_of(values[start : start + _BLOCK_ROWS])) for start in starts])


def plain(content: bytes) -> str:
    """Up to the first NUL, without spaces behind it, cut at 32 characters."""
    return content.partition(b"\0")[0].decode(errors="replace").rstrip()[:MAX_CHARACTERS]


class _Heap:
    """Objects of the collections that texts refer to, each collection read once."""

    def __init__(self, content: mmap.mmap, base: int) -> None:
        """Addresses count from `base` on. Collections do not overlap, so all of them are no longer than the file."""
        self._content, self._base, self._left = content, base, len(content)
        self._collections: dict[int, dict[int, tuple[int, int]]] = {}

    def text(self, length: int, address: int, index: int) -> str:
        if not length:
            return ""
        if address not in self._collections:
            self._collections[address] = self._collection(address)
        start, size = self._collections[address].get(index, (0, 0))
        if length > size:
            raise ValueError(f"a text of {length} bytes is not where it should be")
        return plain(self._content[start : start + min(length, 4 * MAX_CHARACTERS)])

    def _collection(self, address: int) -> dict[int, tuple[int, int]]:
        """Start and size of each object by its index."""
        address += self._base
        signature, version, size = _COLLECTION.unpack(_part(self._content, address, _COLLECTION.size))
        if (signature, version) != (b"GCOL", 1) or address + size > len(self._content):
            raise ValueError("a heap of texts is not where it should be")
        self._left -= size
        if self._left < 0:
            raise ValueError("heaps of texts overlap")
        objects: dict[int, tuple[int, int]] = {}
        place, end = address + _COLLECTION.size, address + size
        while place + _OBJECT.size <= end:
            index, _, _, length = _OBJECT.unpack(_part(self._content, place, _OBJECT.size))
            place += _OBJECT.size
            if not index:  # what is free, up to the end
                break
            if place + length > end or index in objects:
                raise ValueError("a heap of texts is damaged")
            objects[index] = place, length
            place += -(-length // 8) * 8
        return objects


def _part(content: mmap.mmap, start: int, length: int) -> bytes:
    part = content[start : start + length]
    if len(part) != length:
        raise ValueError("it ends before its data")
    return part
