"""The two failures every reader here raises."""

from __future__ import annotations

from models.errors import Code, Failure


def rejected(message: str, where: str | None = None) -> Failure:
    """The network in the file is not one we read. `message` says what it is and what to change."""
    return Failure(Code.NETWORK_REJECTED, message, where=where)


def bad_archive(message: str, where: str | None = None) -> Failure:
    """The zip container itself is wrong."""
    return Failure(Code.BAD_ARCHIVE, message, where=where)


def shown(text: str) -> str:
    """A name from the file, cut and escaped so that it can stand in a message."""
    short = text if len(text) <= 80 else text[:77] + "..."
    return ascii(short)
