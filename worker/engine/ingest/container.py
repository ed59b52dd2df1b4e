"""A zip file of members stored as they are, read strictly: nothing is decompressed, extracted or overlapping.

`.pt2` files, `torch.save` files and zipped folders of weights are such files; each names the members it lets in.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO, Self

from models.errors import Code, Failure
from worker.engine.ingest.rejected import bad_archive, shown

MAXIMUM_MEMBERS = 100_000

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END_OF_DIRECTORY_BYTES = 22
_MAXIMUM_GAP = 64
"""After a member's bytes its sizes may follow once more, in a data descriptor."""


class StoredZip:
    """The members by name, without the root folder they share. Raises `Failure` (bad_archive, or `compressed` for a
    member that is).

    Without `rooted`, members may lie at the top, and folders may have entries of their own.
    """

    compressed = Code.BAD_ARCHIVE
    rooted = True
    advice = "torch stores members as they are"

    def __init__(self, source: Path | BinaryIO) -> None:
        self._path = source if isinstance(source, Path) else None
        self._map: mmap.mmap | None = None
        try:
            self._zip = zipfile.ZipFile(source)
            infos = self._zip.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise bad_archive(f"the file is not a readable zip archive: {error}") from error
        if not 0 < len(infos) <= MAXIMUM_MEMBERS:
            raise bad_archive(f"the archive has {len(infos)} members; 1 to {MAXIMUM_MEMBERS} are read")
        self.members: dict[str, zipfile.ZipInfo] = {}
        self._ends: dict[str, int] = {}
        root = self._root(infos)
        with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as file:
            end = 0
            for info in sorted(infos, key=lambda info: info.header_offset):
                self._admit(info, root)
                self._ends[info.filename] = end = _check_local_header(file, info, end)
            self._check_length(file, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _root(self, infos: list[zipfile.ZipInfo]) -> str:
        root = infos[0].filename.partition("/")[0] + "/"
        if self.rooted or all(info.filename.startswith(root) for info in infos):
            return root
        return ""

    def _admit(self, info: zipfile.ZipInfo, root: str) -> None:
        name = info.filename
        if not name:
            raise bad_archive("a member has no name")
        if info.orig_filename != name or "\\" in name or ".." in name.split("/") or name.startswith("/"):
            raise bad_archive(f"member {shown(name)}: the name is a path out of the archive")
        if root == "/" or not name.startswith(root):
            raise bad_archive(f"member {shown(name)} is outside the root folder {shown(root[:-1])}; there is one root")
        if info.flag_bits & 0x1:
            raise bad_archive(f"member {shown(name)} is encrypted")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Failure(self.compressed, f"member {shown(name)} is compressed; {self.advice}")
        if info.is_dir() and not self.rooted and info.file_size == 0:
            return
        mode = info.external_attr >> 16
        if info.is_dir() or (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
            raise bad_archive(f"member {shown(name)} is a link or a folder, not a file")
        name = name[len(root) :]
        if name in self.members:
            raise bad_archive(f"member {shown(name)} is there twice")
        self.check_name(name)
        self.members[name] = info

    def check_name(self, name: str) -> None:
        """Whether such a member belongs here. Raises `Failure`."""
        raise NotImplementedError

    def _check_length(self, file: BinaryIO, end: int) -> None:
        """The members, the directory and its end record must be all there is."""
        file.seek(-_END_OF_DIRECTORY_BYTES, os.SEEK_END)
        record = file.read()
        if not record.startswith(b"PK\x05\x06") or record[-2:] != b"\0\0":
            raise bad_archive("the archive goes on after the end of its directory, or carries a comment")
        if not 0 <= self._zip.start_dir - end <= _MAXIMUM_GAP:
            raise bad_archive("the archive has bytes that belong to no member")

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def member(self, name: str) -> zipfile.ZipInfo:
        info = self.members.get(name)
        if info is None:
            raise bad_archive(f"the archive has no member {shown(name)}; the file is not whole")
        return info

    def read(self, name: str, maximum: int | None = None) -> bytes:
        """The bytes of a member, of `maximum` at most; checks its CRC."""
        info = self.member(name)
        if maximum is not None and info.file_size > maximum:
            raise bad_archive(f"member {shown(name)} has {info.file_size} bytes; at most {maximum} are read")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise bad_archive(f"member {shown(name)} cannot be read: {error}") from error

    def mapped(self, name: str) -> memoryview:
        """The bytes of a member, writable; checks its CRC. Those of a file stay in it, also once the archive is closed,
        and take memory only where they are written to, which leaves the file as it is."""
        info = self.member(name)
        if self._path is None or not info.file_size:
            return memoryview(bytearray(self.read(name)))
        if self._map is None:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        end = self._ends[info.filename]
        content = memoryview(self._map)[end - info.file_size : end]
        if zlib.crc32(content) != info.CRC:
            raise bad_archive(f"member {shown(name)} cannot be read: its bytes do not have its CRC-32")
        return content

    def close(self) -> None:
        self._zip.close()


def _check_local_header(file: BinaryIO, info: zipfile.ZipInfo, end: int) -> int:
    """Compare a member's own header with the directory's; returns where its bytes end."""
    if info.header_offset < end:
        raise bad_archive(f"member {shown(info.filename)} overlaps another")
    if info.header_offset - end > _MAXIMUM_GAP:
        raise bad_archive(f"there are bytes before member {shown(info.filename)} that belong to no member")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size:
        raise bad_archive(f"member {shown(info.filename)} starts behind the end of the file")
    magic, _, flags, method, _, _, _, compressed, size, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    name = file.read(name_length)
    described_later = bool(flags & 0x8)
    lies = (
        magic != b"PK\x03\x04"
        or method != zipfile.ZIP_STORED
        or flags & 0x1
        or name != info.filename.encode("utf-8")
        or (
            not described_later and 0xFFFFFFFF not in (compressed, size) and (compressed, size) != (info.file_size,) * 2
        )
    )
    if lies:
        raise bad_archive(f"member {shown(info.filename)}: its header and the archive's directory disagree")
    ends: int = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length + info.file_size
    return ends
