"""The zip container of a `.pt2`, read strictly: nothing is decompressed, nothing is extracted, nothing overlaps.

Layout: torch/export/pt2_archive (torch 2.11 to 2.13). Only the members listed here are let in.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from worker.engine.ingest.rejected import bad_archive, rejected, shown

MAXIMUM_MEMBERS = 100_000
MAXIMUM_JSON_BYTES = 64 << 20

GRAPH = "models/model.json"
WEIGHTS = "data/weights/"
WEIGHTS_CONFIG = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/"
CONSTANTS_CONFIG = "data/constants/model_constants_config.json"
BYTE_ORDER = "byteorder"
FORMAT = "archive_format"

_READ = re.compile(
    r"models/model\.json|data/weights/model_weights_config\.json|data/constants/model_constants_config\.json"
    r"|data/weights/weight_\d{1,7}|data/constants/tensor_\d{1,7}|byteorder|archive_format"
)
_NEVER_OPENED = re.compile(
    r"data/sample_inputs/model\.pt|archive_version|version|\.data/version|\.data/serialization_id|extra/[A-Za-z0-9_.-]+"
)
_REFUSED = (
    (re.compile(r"data/aotinductor/.*"), "it carries a compiled library, which would be machine code from the file"),
    (re.compile(r"data/constants/(opaque|custom)_obj_.*"), "it carries a pickled object, which can run code when read"),
    (
        re.compile(r"data/(weights|constants)/.*\.pt|serialized_.*|.*\.pkl"),
        "it carries pickled tensors, as torch before 2.9 wrote them; export it again with torch 2.11 or newer",
    ),
    (re.compile(r"models/.*"), "it holds another program besides `model`; save one network a file"),
)

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END_OF_DIRECTORY_BYTES = 22
_MAXIMUM_GAP = 64
"""After a member's bytes its sizes may follow once more, in a data descriptor."""


class Archive:
    """The members of a `.pt2` by name (without the root folder). Raises `Failure` (bad_archive, network_rejected)."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            infos = self._zip.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise bad_archive(f"the file is not a readable zip archive: {error}") from error
        if not 0 < len(infos) <= MAXIMUM_MEMBERS:
            raise bad_archive(f"the archive has {len(infos)} members; a .pt2 has 1 to {MAXIMUM_MEMBERS}")
        self._members: dict[str, zipfile.ZipInfo] = {}
        root = infos[0].filename.split("/", 1)[0]
        with path.open("rb") as file:
            end = 0
            for info in sorted(infos, key=lambda info: info.header_offset):
                self._admit(info, root)
                end = _check_local_header(file, info, end)
            self._check_length(file, end)

    def _admit(self, info: zipfile.ZipInfo, root: str) -> None:
        name = info.filename
        if info.orig_filename != name or "\\" in name or ".." in name.split("/") or name.startswith("/"):
            raise bad_archive(f"member {shown(name)}: the name is a path out of the archive")
        if not root or not name.startswith(f"{root}/"):
            raise bad_archive(f"member {shown(name)} is outside the root folder {shown(root)}; a .pt2 has one root")
        if info.flag_bits & 0x1:
            raise bad_archive(f"member {shown(name)} is encrypted")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise bad_archive(f"member {shown(name)} is compressed; torch stores members as they are")
        mode = info.external_attr >> 16
        if info.is_dir() or (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
            raise bad_archive(f"member {shown(name)} is a link or a folder, not a file")
        name = name[len(root) + 1 :]
        if name in self._members:
            raise bad_archive(f"member {shown(name)} is there twice")
        if not _READ.fullmatch(name) and not _NEVER_OPENED.fullmatch(name):
            for pattern, reason in _REFUSED:
                if pattern.fullmatch(name):
                    raise rejected(f"archive member {shown(name)} is refused: {reason}")
            raise rejected(f"archive member {shown(name)} does not belong in a .pt2 made by torch.export.save")
        self._members[name] = info

    def _check_length(self, file: BinaryIO, end: int) -> None:
        """The members, the directory and its end record must be all there is."""
        file.seek(-_END_OF_DIRECTORY_BYTES, os.SEEK_END)
        record = file.read()
        if not record.startswith(b"PK\x05\x06") or record[-2:] != b"\0\0":
            raise bad_archive("the archive goes on after the end of its directory, or carries a comment")
        if not 0 <= self._zip.start_dir - end <= _MAXIMUM_GAP:
            raise bad_archive("the archive has bytes that belong to no member")

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, maximum: int | None = None) -> bytes:
        """The bytes of a member that may be read; checks its CRC."""
        info = self._members.get(name)
        if info is None or not _READ.fullmatch(name):
            raise bad_archive(f"the archive has no member {shown(name)}; it is not a whole torch.export file")
        if maximum is not None and info.file_size > maximum:
            raise bad_archive(f"member {shown(name)} has {info.file_size} bytes; at most {maximum} are read")
        try:
            return self._zip.read(info)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
            raise bad_archive(f"member {shown(name)} cannot be read: {error}") from error

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
