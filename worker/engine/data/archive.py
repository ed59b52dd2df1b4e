"""Zip files from strangers: opened only after their list of members was found sound. Nothing is ever extracted."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path

from models.errors import Code, Failure

MAX_MEMBERS = 2_000_000
UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)
"""What `zipfile` raises for bytes that are not what they should be (NotImplementedError is a RuntimeError)."""
METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


def open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading members one at a time.

    Raises Failure(BAD_ARCHIVE) for what an honest writer does not make: duplicate names, absolute names or `..`,
    links, encryption, other compression than stored and deflated.
    """
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise Failure(Code.BAD_ARCHIVE, f"The zip file cannot be read: {error}. It may be truncated.") from error
    try:
        _check(archive.infolist())
    except Failure:
        archive.close()
        raise
    return archive


def _check(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise Failure(Code.BAD_ARCHIVE, f"The zip file has {len(members)} members; at most {MAX_MEMBERS} are read.")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        problem = _problem(member)
        if name in seen:
            problem = "is there twice"
        if problem:
            raise Failure(Code.BAD_ARCHIVE, f"The member {name[:200]!r} {problem}.", where=name[:200])
        seen.add(name)


def leads_outside(name: str) -> bool:
    """Whether a member's name is absolute or goes up."""
    return name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in name.replace("\\", "/").split("/")


def _problem(member: zipfile.ZipInfo) -> str | None:
    name = member.filename
    if not name:
        return "has no name"
    if leads_outside(name):
        return "has a name that leads outside of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "is a link"
    if member.flag_bits & 0x1:
        return "is encrypted"
    if member.compress_type not in METHODS:
        return "is compressed with a method other than deflate"
    return None
