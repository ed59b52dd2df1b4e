"""A strict index of tar archives (ustar, GNU, pax): which plain file lies where. Nothing is extracted or followed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import Code, Failure
from worker.engine.data.archive import MAX_MEMBERS, leads_outside
from worker.engine.data.pictures import SlicedPictures

BLOCK = 512
PLAIN = (b"0", b"\0", b"7")
FOLDER = b"5"
LONG_NAME, LONG_LINK, PAX, PAX_FOR_ALL = b"L", b"K", b"x", b"g"
KINDS = {b"1": "a hard link", b"2": "a link", b"3": "a device", b"4": "a device", b"6": "a pipe", b"S": "a sparse file"}
MAX_EXTENSION_BYTES = 64 << 10
"""Of a long name, or of the pax records of one member."""
MAX_PADDING_BYTES = 1 << 20
"""Zeros after the end."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A plain file: `start` and `size` in bytes say where its content lies in the archive's file."""

    name: str
    start: int
    size: int


def list_members(path: Path) -> list[TarMember]:
    """The plain files in their order; where all are tar archives themselves (shards), the files in those, their names
    led by the shard's.

    Raises Failure(BAD_ARCHIVE) for a broken archive and for what an honest writer of data does not make: duplicate
    names, absolute names or `..`, links, devices, sparse files.
    """
    with path.open("rb") as file:
        descriptor, size = file.fileno(), path.stat().st_size
        members = _members(descriptor, 0, size)
        if members and all(member.name.endswith(".tar") for member in members):
            members = [
                TarMember(f"{shard.name.removesuffix('.tar')}/{member.name}", member.start, member.size)
                for shard in members
                for member in _members(descriptor, shard.start, shard.start + shard.size)
            ]
    if len(members) > MAX_MEMBERS:
        raise Failure(Code.BAD_ARCHIVE, f"The archive has {len(members)} members; at most {MAX_MEMBERS} are read.")
    seen: set[str] = set()
    for member in members:
        if member.name in seen:
            raise _bad_member(member.name, "is there twice")
        seen.add(member.name)
    return members


def pictures_of(path: Path, members: Sequence[TarMember]) -> SlicedPictures:
    return SlicedPictures(
        path, [member.name for member in members], [member.start for member in members], [m.size for m in members]
    )


def _members(descriptor: int, position: int, end: int) -> list[TarMember]:
    """Of the archive between two positions of the file."""
    found: list[TarMember] = []
    long_name: str | None = None
    records: dict[str, str] = {}
    while True:
        header = os.pread(descriptor, BLOCK, position) if position + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise _truncated("it ends without its last blocks")
        if not any(header):
            _check_padding(descriptor, position, end)
            return found
        kind, name, size = header[156:157], *_name_and_size(header)
        start = position + BLOCK
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_FOR_ALL):
            extension = _extension(descriptor, start, size, end)
            if kind == LONG_NAME:
                long_name = extension.rstrip(b"\0").decode(errors="replace")
            elif kind != LONG_LINK:
                records |= _pax(extension, for_all=kind == PAX_FOR_ALL)
        else:
            name = records.get("path", long_name if long_name is not None else name)
            size = _pax_size(records, size)
            _check_member(name, kind, records)
            if start + size > end:
                raise _truncated(f"{name[:200]!r} reaches past the end")
            if kind != FOLDER and not name.endswith("/"):
                found.append(TarMember(name, start, size))
                if len(found) > MAX_MEMBERS:
                    raise Failure(Code.BAD_ARCHIVE, f"The archive has more than {MAX_MEMBERS} members.")
            long_name, records = None, {}
        position = start + -(-size // BLOCK) * BLOCK


def _name_and_size(header: bytes) -> tuple[str, int]:
    """Raises Failure(BAD_ARCHIVE) for a header whose checksum is wrong."""
    try:
        checksum = int(header[148:156].strip(b" \0") or b"0", 8)
        size = _number(header[124:136])
    except ValueError as error:
        raise Failure(Code.BAD_ARCHIVE, "The tar archive has a header with no numbers in it. Write it anew.") from error
    if checksum != sum(header[:148]) + 8 * 32 + sum(header[156:]) or size < 0:
        raise Failure(Code.BAD_ARCHIVE, "The tar archive has a header that does not match its checksum. Send it again.")
    name = header[:100].split(b"\0")[0].decode(errors="replace")
    prefix = header[345:500].split(b"\0")[0].decode(errors="replace") if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name, size


def _number(field: bytes) -> int:
    """Octal text, or binary for what is too large for that (GNU)."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    return int(field.strip(b" \0") or b"0", 8)


def _extension(descriptor: int, start: int, size: int, end: int) -> bytes:
    if size > MAX_EXTENSION_BYTES or start + size > end:
        raise Failure(
            Code.BAD_ARCHIVE, f"The tar archive has a name of {size} bytes; at most {MAX_EXTENSION_BYTES} are read."
        )
    return os.pread(descriptor, size, start)


def _pax(content: bytes, *, for_all: bool) -> dict[str, str]:
    records = dict(_pax_records(content))
    if for_all and records.keys() & {"path", "size"}:
        raise Failure(Code.BAD_ARCHIVE, "The tar archive gives all its files one name or size. Write it anew.")
    return {} if for_all else records


def _pax_records(content: bytes) -> Iterator[tuple[str, str]]:
    """Of `LENGTH KEY=VALUE` lines, whose length counts itself."""
    while content.strip(b"\0"):
        length, _, rest = content.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        key, separator, value = content[len(length) + 1 : size - 1].partition(b"=")
        if not rest or not separator or size > len(content) or content[size - 1 : size] != b"\n":
            raise Failure(Code.BAD_ARCHIVE, "The tar archive has pax records that cannot be read. Write it anew.")
        yield key.decode(errors="replace"), value.decode(errors="replace")
        content = content[size:]


def _pax_size(records: dict[str, str], size: int) -> int:
    given = records.get("size", str(size))
    if not given.isascii() or not given.isdigit() or len(given) > 18:
        raise Failure(Code.BAD_ARCHIVE, "The tar archive has a size that is no number. Write it anew.")
    return int(given)


def _check_member(name: str, kind: bytes, records: dict[str, str]) -> None:
    if not name or "\0" in name:
        raise _bad_member(name, "has no name that can be read")
    if leads_outside(name):
        raise _bad_member(name, "has a name that leads outside of the archive")
    if any(key.startswith("GNU.sparse") for key in records):
        raise _bad_member(name, "is a sparse file")
    if kind not in (*PLAIN, FOLDER):
        raise _bad_member(name, f"is {KINDS.get(kind, 'of a kind that is not read')}")


def _check_padding(descriptor: int, position: int, end: int) -> None:
    rest = end - position
    if rest > MAX_PADDING_BYTES or any(os.pread(descriptor, rest, position)):
        raise Failure(
            Code.BAD_ARCHIVE,
            "The tar archive goes on after its end. Put several into one another way: `tar cf data.tar *.tar`.",
        )


def _truncated(how: str) -> Failure:
    return Failure(Code.BAD_ARCHIVE, f"The tar archive is truncated: {how}. Send it again whole.")


def _bad_member(name: str, problem: str) -> Failure:
    shown = name[:200]
    return Failure(
        Code.BAD_ARCHIVE,
        f"The member {shown!r} {problem}; pack plain files alone, each under its own name.",
        where=shown,
    )
