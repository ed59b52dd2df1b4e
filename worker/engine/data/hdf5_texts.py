"""Texts of any length in an HDF5 file, read without the library, whose own reader of them never ends on some files.

Source: The HDF5 Group, HDF5 File Format Specification 3.0, III.E (global heap) and IV.B (variable-length data).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import h5py
import numpy as np

from worker.engine.data.npy import Array, bad_array

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])
_COLLECTION, _OBJECT = struct.Struct("<4sB3xQ"), struct.Struct("<HHIQ")
MAX_CHARACTERS = 32
BLOCK_ROWS = 65536


def read_texts(path: Path, dataset: h5py.Dataset, references: Array) -> Array:
    """One text for each of `references` [samples], cut at 32 characters; those never written are empty.

    Raises Failure(DATASET_BAD) for a file of another layout than h5py writes, ValueError for a broken one.
    """
    if dataset.file.id.get_create_plist().get_sizes() != (8, 8) or dataset.file.userblock_size:
        raise bad_array(
            "split",
            "is in a file of another layout than h5py writes",
            "save it as bytes of one length: `np.array(split, dtype='S5')`",
        )
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        heap = _Heap(content)
        blocks = [
            np.array([heap.text(*each) for each in references[start : start + BLOCK_ROWS].tolist()])
            for start in range(0, len(references), BLOCK_ROWS)
        ]
    return np.concatenate(blocks)


class _Heap:
    """Objects of the collections that texts refer to, each collection read once."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._collections: dict[int, dict[int, tuple[int, int]]] = {}

    def text(self, length: int, address: int, index: int) -> str:
        if not length:
            return ""
        if address not in self._collections:
            self._collections[address] = self._collection(address)
        start, size = self._collections[address].get(index, (0, 0))
        if length > size:
            raise ValueError(f"a text of {length} bytes is not where it should be")
        return self._content[start : start + min(length, 4 * MAX_CHARACTERS)].decode(errors="replace")[:MAX_CHARACTERS]

    def _collection(self, address: int) -> dict[int, tuple[int, int]]:
        """Start and size of each object by its index."""
        signature, version, size = _COLLECTION.unpack(_part(self._content, address, _COLLECTION.size))
        if (signature, version) != (b"GCOL", 1) or address + size > len(self._content):
            raise ValueError("a heap of texts is not where it should be")
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
