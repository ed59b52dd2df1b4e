"""A strict reader of `.npz`: a zip of `.npy` arrays (numpy.lib.format, versions 1 and 2).

`numpy.load` allocates what a header claims and unpickles object arrays when told to. Here nothing is unpickled, and
a header must agree with the member's size before anything is allocated. Stored members are mapped, not read: the
data may be larger than memory. Deflated ones are inflated into memory, under a ratio and a total.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from models.errors import Code, Failure
from worker.engine.data.archive import UNREADABLE, open_archive

Array = np.ndarray[Any, np.dtype[Any]]

MAX_ARRAYS = 256
MAX_RATIO = 20
"""Inflated bytes for each deflated byte. Labels and splits compress better than this, hence the next line."""
FREE_BYTES = 16 << 20
"""A member may always inflate to this much."""
MAX_INFLATED_BYTES = 8 << 30
MAX_HEADER_BYTES = 10_000
NUMERIC_KINDS = "biuf"
LOCAL_HEADER = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Header:
    """What a `.npy` header says; `data_offset` is its own length in bytes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    column_major: bool
    data_offset: int


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` by name, read-only.

    Raises Failure: BAD_ARCHIVE when the zip is not sound, DATASET_BAD when an array is not one that may be read.
    """
    with open_archive(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        if len(members) > MAX_ARRAYS:
            raise Failure(Code.DATASET_BAD, f"The file has {len(members)} arrays; at most {MAX_ARRAYS} are read.")
        inflated = sum(m.file_size for m in members if m.compress_type != zipfile.ZIP_STORED)
        if inflated > MAX_INFLATED_BYTES:
            raise _bad(path.name, f"inflates to {inflated} bytes, more than {MAX_INFLATED_BYTES}", "use `np.savez`")
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise _bad(name, "is not a `.npy` array", "write the file with `np.savez`")
            arrays[name] = _read_member(path, archive, member, name)
    if not arrays:
        raise Failure(Code.DATASET_BAD, "The file holds no array; write it with `np.savez(file, x=…, y=…)`.")
    return arrays


def check_contents(path: Path) -> None:
    """Read every byte once against the zip's checksums: mapping alone would not notice a flipped bit."""
    with open_archive(path) as archive:
        try:
            broken = archive.testzip()
        except UNREADABLE as error:
            raise Failure(Code.BAD_ARCHIVE, f"The zip file cannot be read: {error}.") from error
    if broken is not None:
        raise Failure(Code.BAD_ARCHIVE, f"The member {broken!r} does not match its checksum.", where=broken)


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Array:
    stored = member.compress_type == zipfile.ZIP_STORED
    if not stored and member.file_size > max(FREE_BYTES, MAX_RATIO * member.compress_size):
        raise _bad(
            name,
            f"is compressed {member.file_size // max(member.compress_size, 1)} times, more than {MAX_RATIO}",
            "write it with `np.savez` instead of `np.savez_compressed`",
        )
    try:
        with archive.open(member) as stream:
            header = _read_header(stream, name)
            _check_header(header, member, name)
            if stored:
                return _map(path, member, header)
            return _inflate(stream, header, name)
    except UNREADABLE as error:
        raise Failure(Code.BAD_ARCHIVE, f"The array {name!r} cannot be read: {error}.", where=name) from error


def _read_header(stream: IO[bytes], name: str) -> Header:
    try:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} is not read")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, column_major, dtype = read(stream, max_header_size=MAX_HEADER_BYTES)
    # numpy parses the header with ast.literal_eval, which answers hostile text with any of these.
    except (ValueError, TypeError, SyntaxError, KeyError, RecursionError, MemoryError, OverflowError) as error:
        raise _bad(name, f"has a header that cannot be read ({error})", "write it with `np.savez`") from error
    return Header(shape, dtype, column_major, stream.tell())


def _check_header(header: Header, member: zipfile.ZipInfo, name: str) -> None:
    if header.dtype.hasobject:
        raise _bad(
            name,
            "holds Python objects, that is a pickle, which can run code when read",
            "save numbers: an array that `np.asarray(…).dtype` shows as a number type",
        )
    text = name == "split" and header.dtype.kind in "US"
    number = header.dtype.kind in NUMERIC_KINDS and header.dtype.itemsize <= 8
    if header.dtype.fields or header.dtype.itemsize == 0 or not (number or text):
        raise _bad(name, f"has the dtype {header.dtype}", "save bool, integer or floating-point numbers")
    if len(header.shape) > 32 or any(type(size) is not int or size < 0 for size in header.shape):
        raise _bad(name, f"has the shape {header.shape}", "write it with `np.savez`")
    claimed = prod(header.shape) * header.dtype.itemsize
    present = member.file_size - header.data_offset
    if claimed != present:
        raise _bad(name, f"claims {claimed} bytes of data and has {present}", "write it with `np.savez`")
    if not header.shape or header.shape[0] == 0:
        raise _bad(name, f"has the shape {header.shape} and so no samples", "put samples on the first dimension")
    if claimed == 0:
        raise _bad(name, f"has the shape {header.shape}", "leave out arrays without elements")


def _map(path: Path, member: zipfile.ZipInfo, header: Header) -> Array:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    name_length, extra_length = local[9], local[10]
    start = member.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if start + member.file_size > path.stat().st_size:
        raise zipfile.BadZipFile("it reaches past the end of the file")
    return np.memmap(
        path,
        dtype=header.dtype,
        mode="r",
        offset=start + header.data_offset,
        shape=header.shape,
        order="F" if header.column_major else "C",
    )


def _inflate(stream: IO[bytes], header: Header, name: str) -> Array:
    size = prod(header.shape) * header.dtype.itemsize
    buffer = bytearray(size)
    view = memoryview(buffer)
    done = 0
    while done < size:
        chunk = stream.read(min(1 << 20, size - done))
        if not chunk:
            raise EOFError(f"{name!r} ends after {done} of {size} bytes")
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    if stream.read(1):
        raise zipfile.BadZipFile("it is longer than its header says")
    array: Array = np.ndarray(
        header.shape, dtype=header.dtype, buffer=buffer, order="F" if header.column_major else "C"
    )
    array.flags.writeable = False
    return array


def _bad(name: str, what: str, remedy: str) -> Failure:
    return Failure(Code.DATASET_BAD, f"The array {name!r} {what}; {remedy}.", where=name)
