"""A strict reader of `.npy` arrays (numpy.lib.format, versions 1 and 2): files of their own or in archives.

`numpy.load` allocates what a header claims and unpickles object arrays when told to. Here nothing is unpickled, and
a header must agree with the number of bytes there are before anything is allocated or mapped.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from models.errors import Code, Failure

Array = np.ndarray[Any, np.dtype[Any]]

MAX_HEADER_BYTES = 10_000
MAX_DIMENSIONS = 32
NUMERIC_KINDS = "biuf"


@dataclass(frozen=True)
class Header:
    """What a `.npy` header says; `data_offset` is its own length in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    column_major: bool
    data_offset: int


def read_npy(path: Path, name: str) -> Array:
    """The array of a `.npy` file, mapped. Raises Failure(DATASET_BAD) when it may not be read, naming it `name`."""
    with path.open("rb") as stream:
        header = read_header(stream, path.stat().st_size, name)
    return map_array(path, header.data_offset, header)


def read_header(stream: IO[bytes], size_bytes: int, name: str, *, one_sample: bool = False) -> Header:
    """The header at the stream's position, sound for an array that takes `size_bytes` with its header: of all samples,
    or of one.

    Raises Failure(DATASET_BAD) for objects (a pickle), dtypes that are no numbers, and another size than claimed.
    """
    start = stream.tell()
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} is not read")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, column_major, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        raise  # of the archive that the stream is of
    # numpy parses the header with tokenize and ast.literal_eval, which answer hostile text with nearly any exception.
    except Exception as error:
        raise bad_array(name, f"has a header that cannot be read ({error})", "write it with numpy") from error
    header = Header(shape, dtype, column_major, stream.tell() - start)
    _check(header, size_bytes - header.data_offset, name, one_sample=one_sample)
    return header


def map_array(path: Path, offset: int, header: Header) -> Array:
    """The data at `offset` of the file, read-only and not read yet."""
    return np.memmap(
        path,
        dtype=header.dtype,
        mode="r",
        offset=offset,
        shape=header.shape,
        order="F" if header.column_major else "C",
    )


def check_layout(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raises Failure(DATASET_BAD) unless there are samples on the first dimension, of numbers (or text in `split`)."""
    text = name == "split" and dtype.kind in "US"
    number = dtype.kind in NUMERIC_KINDS and dtype.itemsize <= 8
    if dtype.fields or dtype.itemsize == 0 or not (number or text):
        raise bad_array(name, f"has the dtype {dtype}", "save bool, integer or floating-point numbers")
    if len(shape) > MAX_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
        raise bad_array(name, f"has the shape {shape}", "write it with numpy")
    if not shape or shape[0] == 0:
        raise bad_array(name, f"has the shape {shape} and so no samples", "put samples on the first dimension")
    if prod(shape) == 0:
        raise bad_array(name, f"has the shape {shape}", "leave out arrays without elements")


def bad_array(name: str, what: str, remedy: str) -> Failure:
    return Failure(Code.DATASET_BAD, f"The array {name!r} {what}; {remedy}.", where=name)


def _check(header: Header, present: int, name: str, *, one_sample: bool) -> None:
    if header.dtype.hasobject:
        raise bad_array(
            name,
            "holds Python objects, that is a pickle, which can run code when read",
            "save numbers: an array that `np.asarray(…).dtype` shows as a number type",
        )
    claimed = prod(header.shape) * header.dtype.itemsize
    if all(type(size) is int and size >= 0 for size in header.shape) and claimed != present:
        raise bad_array(name, f"claims {claimed} bytes of data and has {present}", "write it with numpy")
    check_layout(name, (1, *header.shape) if one_sample else header.shape, header.dtype)
