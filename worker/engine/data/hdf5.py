"""Arrays of an HDF5 file: the datasets at its top. The only file opened is this one.

Links, external storage, virtual datasets, references and other filters than the library's own are refused before any
data is read. The library tells where data lies, and is not trusted with it: what is in one piece is mapped; chunks are
read once, in order, into a scratch file when large.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from models.errors import Code, Failure
from worker.engine.data.hdf5_chunks import FILTERS, chunks_of, read_chunks
from worker.engine.data.hdf5_texts import REFERENCE, check_references, in_blocks, plain, read_texts
from worker.engine.data.npy import Array, bad_array, check_layout
from worker.engine.data.npz import FREE_BYTES, MAX_ARRAYS, MAX_RATIO
from worker.engine.data.spool import Spool

BLOCK_BYTES = 16 << 20
MAX_CHUNK_BYTES = 256 << 20
MAX_TEXTS = 50_000_000
MAX_TEXT_RATIO = 1000
"""Three words again and again: as much as deflate can."""
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, OverflowError, UnicodeError, NotImplementedError)
"""What the library raises for bytes that are not what they should be."""


def read_hdf5(path: Path) -> dict[str, Array]:
    """The arrays by name, read-only; `split` as text or numbers.

    Raises Failure: BAD_ARCHIVE for a broken file, DATASET_BAD for an array that may not be read, and says which.
    """
    while h5py.h5pl.size():
        h5py.h5pl.remove(0)  # no folder is left from which the library would load filters of others
    try:
        with h5py.File(path, "r", locking=False) as file:
            names = list(file)
            if len(names) > MAX_ARRAYS:
                raise Failure(Code.DATASET_BAD, f"The file has {len(names)} datasets; at most {MAX_ARRAYS} are read.")
            room = Room(path.stat().st_size)
            return {name: _read(path, _dataset(file, name), name, room) for name in names}
    except UNREADABLE as error:
        raise Failure(
            Code.BAD_ARCHIVE,
            f"The HDF5 file cannot be read: {str(error)[:300]}. It may be truncated; write it anew with h5py.",
        ) from error


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a link"
        raise bad_array(name, f"is {kind}, which is not followed", "store the data itself")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise bad_array(
            name, f"is a {type(found).__name__.lower()}", "put the arrays at the top of the file: `x`, `y`, `split`"
        )
    return found


def _read(path: Path, dataset: h5py.Dataset, name: str, room: Room) -> Array:
    properties = dataset.id.get_create_plist()
    if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
        raise bad_array(name, "keeps its data in another file, which is not opened", "store the data itself")
    if name == "split" and (text := h5py.check_string_dtype(dataset.dtype)) is not None:
        return _texts(path, dataset, text.length, room)
    if dataset.dtype.hasobject or (dataset.dtype.metadata is not None and dataset.dtype.kind not in "iub"):
        raise bad_array(name, "holds references, texts or lists of other lengths", "save arrays of numbers")
    if dataset.shape is None:
        raise bad_array(name, "is empty", "leave it out")
    check_layout(name, dataset.shape, dataset.dtype)
    if not _is_plain(dataset):
        return _converted(dataset, name)
    return _stored(path, dataset, np.dtype(dataset.dtype.str), name, room)


def _is_plain(dataset: h5py.Dataset) -> bool:
    """Whether its bytes are those of numpy's type."""
    kind = dataset.id.get_type()
    if kind == h5py.h5t.py_create(dataset.dtype):
        return True
    return isinstance(kind, h5py.h5t.TypeEnumID) and kind.get_super() == h5py.h5t.py_create(np.dtype(dataset.dtype.str))


def _stored(path: Path, dataset: h5py.Dataset, dtype: np.dtype[Any], name: str, room: Room) -> Array:
    """All elements as `dtype`, which is how they are stored."""
    layout = dataset.id.get_create_plist().get_layout()
    if layout == h5py.h5d.CHUNKED:
        _check_chunks(dataset, dtype.itemsize, name, room)
        return read_chunks(path, dataset, dtype)
    _check_presence(dataset, dtype.itemsize, name)
    if layout == h5py.h5d.COMPACT:
        return np.asarray(dataset[...])
    start, size = dataset.id.get_offset(), prod(dataset.shape) * dtype.itemsize
    if start is None or start + size > path.stat().st_size:
        raise ValueError("it ends before its data")
    return np.memmap(path, dtype, "r", start, dataset.shape)


def _converted(dataset: h5py.Dataset, name: str) -> Array:
    """By the library: numbers of a form of their own, such as whole ones of twelve bits."""
    if dataset.chunks:
        raise bad_array(name, "has numbers of a form of their own, in chunks", "save it in one of numpy's types")
    _check_presence(dataset, dataset.id.get_type().get_size(), name)
    spool = Spool(dataset.dtype, dataset.shape[1:])
    rows = max(1, BLOCK_BYTES // max(1, prod(dataset.shape[1:]) * dataset.dtype.itemsize))
    for start in range(0, dataset.shape[0], rows):
        spool.append(dataset[start : start + rows])
    return spool.array()


def _texts(path: Path, dataset: h5py.Dataset, length: int | None, room: Room) -> Array:
    if dataset.shape is None or len(dataset.shape) != 1 or not 0 < dataset.shape[0] <= MAX_TEXTS:
        raise bad_array("split", f"has the shape {dataset.shape}", "save one text a sample: train, val or test")
    if length is None:
        check_references(dataset)
        return read_texts(path, dataset, _stored(path, dataset, REFERENCE, "split", room))
    room = Room(room.file_bytes, MAX_TEXT_RATIO)
    stored = _stored(path, dataset, np.dtype(f"S{length}"), "split", room)
    return in_blocks(stored, lambda block: [plain(text) for text in block])


def _check_presence(dataset: h5py.Dataset, each: int, name: str) -> None:
    claimed, present = prod(dataset.shape) * each, dataset.id.get_storage_size()
    if claimed != present:
        raise bad_array(name, f"claims {claimed} bytes of data and has {present}", "write it with h5py")


def _check_chunks(dataset: h5py.Dataset, each: int, name: str, room: Room) -> None:
    properties = dataset.id.get_create_plist()
    others = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())} - FILTERS
    if others:
        raise bad_array(
            name, f"is written with the filter {min(others)}, which is not read", "use gzip, lzf or no compression"
        )
    chunk = prod(dataset.chunks) * each
    if chunk > MAX_CHUNK_BYTES:
        raise bad_array(name, f"has chunks of {chunk} bytes, more than {MAX_CHUNK_BYTES}", "use smaller chunks")
    claimed, present = chunks_of(dataset) * chunk, min(dataset.id.get_storage_size(), room.file_bytes)
    if claimed > max(FREE_BYTES, room.ratio * present) or claimed > room.left:
        raise bad_array(
            name,
            f"is compressed {claimed // max(present, 1)} times, more than {room.ratio}",
            "write it without compression, and all of it",
        )
    room.left -= claimed


class Room:
    """What all chunks of a file may come to, each `ratio` times what is stored for it: several may lie in one place."""

    def __init__(self, file_bytes: int, ratio: int = MAX_RATIO) -> None:
        self.file_bytes, self.ratio = file_bytes, ratio
        self.left = max(4 * FREE_BYTES, ratio * file_bytes)
