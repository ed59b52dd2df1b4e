"""A strict reader of `.npz`: a zip of `.npy` arrays.

Stored members are mapped, not read: the data may be larger than memory. Deflated ones are inflated into memory, under
a ratio and a total.
"""

from __future__ import annotations

import struct
import zipfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from models.errors import Code, Failure
from worker.engine.data.archive import UNREADABLE, open_archive
from worker.engine.data.npy import Array, Header, bad_array, map_array, read_header

MAX_ARRAYS = 256
MAX_RATIO = 20
"""Inflated bytes for each deflated byte. Labels and splits compress better than this, hence the next line."""
FREE_BYTES = 16 << 20
"""A member may always inflate to this much."""
MAX_INFLATED_BYTES = 8 << 30
LOCAL_HEADER = struct.Struct("<4s5H3L2H")


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
            raise bad_array(
                path.name, f"inflates to {inflated} bytes, more than {MAX_INFLATED_BYTES}", "use `np.savez`"
            )
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise bad_array(name, "is not a `.npy` array", "write the file with `np.savez`")
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
        raise bad_array(
            name,
            f"is compressed {member.file_size // max(member.compress_size, 1)} times, more than {MAX_RATIO}",
            "write it with `np.savez` instead of `np.savez_compressed`",
        )
    try:
        with archive.open(member) as stream:
            header = read_header(stream, member.file_size, name)
            if stored:
                return _map(path, member, header)
            return _inflate(stream, header, name)
    except UNREADABLE as error:
        raise Failure(Code.BAD_ARCHIVE, f"The array {name!r} cannot be read: {error}.", where=name) from error


def _map(path: Path, member: zipfile.ZipInfo, header: Header) -> Array:
    with path.open("rb") as file:
        file.seek(member.header_offset)
        local = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    name_length, extra_length = local[9], local[10]
    start = member.header_offset + LOCAL_HEADER.size + name_length + extra_length
    if start + member.file_size > path.stat().st_size:
        raise zipfile.BadZipFile("it reaches past the end of the file")
    return map_array(path, start + header.data_offset, header)


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
