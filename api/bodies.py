"""Reading request bodies: a chunk in memory at most, and no patience with a silent or trickling sender."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from fastapi import Request

from api.errors import HeaderedFailure
from models.errors import Code, Failure

CHUNK_BYTES = 1 << 20
SMALL_BODY_SECONDS = 30.0
SMALL_BODY_BYTES_PER_SECOND = 1024


class Disconnected(Exception):
    """The client went away before the body's end."""


def refuse_forms(request: Request) -> None:
    """415 for `multipart/form-data`. Any other type is taken as it is: curl declares files as it likes."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type.startswith("multipart/"):
        raise Failure(Code.USE_RAW_BODY, f"The body is {media_type}; a file is sent as the body itself.")


def refuse_encodings(request: Request) -> None:
    """415 for a compressed transfer: nothing is inflated here."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Failure(
            Code.UNSUPPORTED_MEDIA_TYPE, f"Content-Encoding {encoding} is not undone here; send the body uncompressed."
        )


def too_large(limit_bytes: int) -> Failure:
    """For a body that is longer, or says that it will be."""
    return HeaderedFailure(
        Code.TOO_LARGE,
        f"The body is larger than the {limit_bytes} bytes allowed here.",
        headers={"Upload-Limit": f"max-size={limit_bytes}", "Connection": "close"},
    )


async def stream(
    request: Request, limit_bytes: int, idle_seconds: float, minimum_bytes_per_second: int
) -> AsyncGenerator[bytes]:
    """The body in pieces as they arrive.

    Raises `Failure` with `too_large` beyond `limit_bytes` (at once when Content-Length says so), with `body_timeout`
    after `idle_seconds` of silence, or at less than the minimum rate over as long; `Disconnected` when the client goes
    away.
    Only time spent waiting for the client counts.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)
    received = 0
    waited, window_bytes = 0.0, 0
    while True:
        started = time.monotonic()
        try:
            async with asyncio.timeout(idle_seconds):
                message = await request.receive()
        except TimeoutError:
            raise _too_slow(f"No byte arrived for {idle_seconds:g} s.") from None
        if message["type"] == "http.disconnect":
            raise Disconnected
        piece: bytes = message.get("body", b"")
        received += len(piece)
        if received > limit_bytes:
            raise too_large(limit_bytes)
        waited += time.monotonic() - started
        window_bytes += len(piece)
        if waited > idle_seconds:
            if window_bytes < minimum_bytes_per_second * waited and message.get("more_body"):
                raise _too_slow(f"Fewer than {minimum_bytes_per_second} bytes a second arrived.")
            waited, window_bytes = 0.0, 0
        if piece:
            yield piece
        if not message.get("more_body"):
            return


def _too_slow(what: str) -> Failure:
    return HeaderedFailure(Code.BODY_TIMEOUT, f"{what} The request was ended.", headers={"Connection": "close"})


async def in_chunks(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The same bytes in chunks of `CHUNK_BYTES`, but for the last."""
    buffer = bytearray()
    async for piece in pieces:
        buffer += piece
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)


async def read_small_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body, for JSON. Raises as `stream` does."""
    pieces = stream(request, limit_bytes, SMALL_BODY_SECONDS, SMALL_BODY_BYTES_PER_SECOND)
    return b"".join([piece async for piece in pieces])
