"""Keyset cursors: a page goes on behind an id, so that rows coming and going never shift it."""

from __future__ import annotations

import base64
import binascii
import hashlib

from models.errors import Code, Failure, FieldProblem
from models.ids import is_id

_CHECK_BYTES = 6


def _check(value: bytes) -> bytes:
    return hashlib.sha256(b"modelpress cursor " + value).digest()[:_CHECK_BYTES]


def cursor_of(object_id: str) -> str:
    value = object_id.encode()
    return base64.urlsafe_b64encode(value + _check(value)).decode().rstrip("=")


def id_of(cursor: str | None, prefix: str) -> str | None:
    """The id inside a cursor. Raises `Failure` with `bad_request` for one that was not made here, for this list."""
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        value, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
        object_id = value.decode("ascii")
    except (binascii.Error, ValueError):
        object_id, value, check = "", b"", b""
    if check != _check(value) or not is_id(object_id, prefix):
        problem = FieldProblem(pointer="/query/after", message="Use `next_cursor` of the page before, unchanged")
        raise Failure(Code.BAD_REQUEST, "The cursor is not one that was given out here.", problems=(problem,))
    return object_id
