"""Arrays of a safetensors file, mapped. The library checks that the header covers the file exactly and once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from models.errors import Code, Failure
from worker.engine.data.npy import Array, bad_array, check_layout
from worker.engine.data.spool import Spool

MAX_ARRAYS = 256
DTYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "BF16": "<u2",
}
BLOCK_ELEMENTS = 4 << 20


def read_safetensors(path: Path) -> dict[str, Array]:
    """The arrays by name, read-only; bfloat16 becomes float32, which holds every value of it.

    Raises Failure: BAD_ARCHIVE when the file is not sound, DATASET_BAD when an array is not one that may be read.
    """
    try:
        with safe_open(path, "numpy"):
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise Failure(
            Code.BAD_ARCHIVE, f"The safetensors file cannot be read: {error}. It may be truncated; send it again whole."
        ) from error
    header.pop("__metadata__", None)
    if not header:
        raise Failure(
            Code.DATASET_BAD,
            "The file holds no array; write it with `save_file({'x': …, 'y': …}, path)` of safetensors.",
        )
    if len(header) > MAX_ARRAYS:
        raise Failure(
            Code.DATASET_BAD,
            f"The file has {len(header)} arrays; at most {MAX_ARRAYS} are read. Data is one array for each input, "
            "samples first; weights of a network go to `/models`.",
        )
    return {name: _array(path, 8 + length, name, entry) for name, entry in header.items()}


def _array(path: Path, data: int, name: str, entry: dict[str, Any]) -> Array:
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in DTYPES:
        raise bad_array(name, f"has the dtype {dtype}", "save bool, integer or floating-point numbers of 8 to 64 bits")
    stored = np.dtype(DTYPES[dtype])
    check_layout(name, shape, stored)
    mapped: Array = np.memmap(path, stored, "r", data + entry["data_offsets"][0], shape)
    return _widened(mapped) if dtype == "BF16" else mapped


def _widened(halves: Array) -> Array:
    """float32 of which the stored 16 bits are the upper half."""
    spool = Spool(np.dtype(np.float32), halves.shape[1:])
    for rows in _row_blocks(halves):
        spool.append((rows.astype(np.uint32) << 16).view(np.float32))
    return spool.array()


def _row_blocks(array: Array) -> Iterator[Array]:
    step = max(1, BLOCK_ELEMENTS // prod(array.shape[1:]))
    for start in range(0, len(array), step):
        yield array[start : start + step]
