"""An ONNX file and the file with its weights, as one tar archive: read by a strict reader, never unpacked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from models.reading import ReadOptions
from worker.engine.ingest.onnx.read import MAXIMUM_BYTES, read_model
from worker.engine.ingest.program import Program
from worker.engine.ingest.rejected import bad_archive, rejected, shown

BLOCK = 512
MAXIMUM_MEMBERS = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@=-]{0,99}")
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*")


@dataclass(frozen=True)
class Member:
    """A file in the archive: where its bytes are."""

    name: str
    offset: int
    length: int


def read_onnx_archive(path: Path, options: ReadOptions) -> Program:
    """The network in a tar archive of one ONNX file and the data files it names.

    Raises `Failure`: bad_archive when the archive has anything else than such plain files; else as `read_onnx` does.
    """
    with path.open("rb") as file:
        members = _members(file, path.stat().st_size)
        networks = [member for member in members if member.name.endswith(".onnx")]
        if len(networks) != 1:
            raise rejected(
                f"the tar archive holds {len(networks)} ONNX files; send one with its data file, or one as it is"
            )
        data = {member.name: member for member in members if member is not networks[0]}
        unused = set(data)

        def external(location: str, offset: int, length: int) -> bytearray:
            member = data.get(location)
            if member is None:
                raise rejected(f"the weights are in {shown(location)}, which is not beside the network in the archive")
            unused.discard(location)
            if offset + length > member.length:
                raise rejected(f"{shown(location)} has {member.length} bytes, too few for its weights")
            content = bytearray(length)
            file.seek(member.offset + offset)
            if file.readinto(content) != length:
                raise bad_archive("the archive is cut short")
            return content

        if networks[0].length > MAXIMUM_BYTES:
            raise rejected("the ONNX file itself is larger than 2 GB; its weights belong into the data file")
        file.seek(networks[0].offset)
        content = file.read(networks[0].length)
        program = read_model(content, options, external)
        if unused:
            raise bad_archive(f"the archive holds {shown(min(unused))}, which the network does not use")
        return program


def _members(file: BufferedReader, size: int) -> list[Member]:
    """The files of the archive, in the formats ustar and GNU: plain ones in one folder, covering it exactly."""
    members: list[Member] = []
    position = 0
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if len(header) < BLOCK:
            raise bad_archive("the archive is cut short")
        if not any(header):
            break
        members.append(_member(header, position + BLOCK))
        position = members[-1].offset + -(-members[-1].length // BLOCK) * BLOCK
        if len(members) > MAXIMUM_MEMBERS or position > size:
            raise bad_archive("the archive is cut short, or holds too many files")
    while rest := file.read(1 << 20):
        if any(rest):
            raise bad_archive("something follows the end of the archive")
    if len({member.name for member in members}) != len(members):
        raise bad_archive("the archive holds a file twice")
    return members


def _member(header: bytes, offset: int) -> Member:
    if header[257:262] != b"ustar" or int(_number(header[148:156])) != sum(header[:148]) + 256 + sum(header[156:]):
        raise bad_archive("the archive has a broken header")
    name = header[:100].split(b"\0")[0].decode("ascii", "replace").removeprefix("./")
    is_ustar = header[257:263] == b"ustar\0"
    if header[156:157] not in (b"0", b"\0") or _NAME.fullmatch(name) is None or (is_ustar and any(header[345:500])):
        raise bad_archive(
            f"the archive holds {shown(name)}, which is no plain file beside the others: pack it with "
            "`tar --format=ustar -cf network.tar NAME.onnx NAME.data` in their folder"
        )
    return Member(name, offset, _number(header[124:136]))


def _number(field: bytes) -> int:
    """Octal digits, or the binary form of sizes from 8 GiB on."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:
        raise bad_archive("the archive has a broken header")
    return int(match[1], 8)
