"""Downloads: one range at most, a strong ETag that is the content's SHA-256, a digest to check against."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import BinaryIO
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import HeaderedFailure
from models.errors import Code

CHUNK_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.IGNORECASE)


class ArtifactResponse(StreamingResponse):
    """A stored file, or the range of it that was asked for; several ranges, or one that makes no sense, get the whole
    file (RFC 9110, 14.2). It reads `file`, from whatever store that comes, and closes it. `tag`, which is hex, is the
    SHA-256 of the content, unless not `is_digest`: then it only stands for it.

    Raises `Failure` with `range_not_satisfiable` for a range behind the end; `file` is closed then, too.
    """

    def __init__(
        self,
        file: BinaryIO,
        size_bytes: int,
        tag: str,
        *,
        name: str,
        content_type: str,
        range_: str | None = None,
        if_range: str | None = None,
        is_digest: bool = True,
    ) -> None:
        self._file = file
        headers = _headers(name, tag, is_digest)
        try:
            wanted = _range(range_, size_bytes) if if_range in (None, headers["ETag"]) else None
        except BaseException:
            file.close()
            raise
        start, end = wanted or (0, size_bytes)
        headers["Content-Length"] = str(end - start)
        if wanted is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
        super().__init__(
            _pieces(file, start, end), status_code=206 if wanted else 200, headers=headers, media_type=content_type
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] == "HEAD":
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
            else:
                await super().__call__(scope, receive, send)
        finally:
            await run_in_threadpool(self._file.close)


def not_modified(name: str, tag: str, *, is_digest: bool = True) -> Response:
    headers = _headers(name, tag, is_digest)
    kept = ("ETag", "Cache-Control", "Repr-Digest")
    return Response(status_code=304, headers={header: headers[header] for header in kept if header in headers})


def matches(sha256: str, if_none_match: str) -> bool:
    """Whether an If-None-Match header names this content."""
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in tags or f'"{sha256}"' in tags


def _headers(name: str, tag: str, is_digest: bool) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(tag)).decode()
    quoted = quote(name)
    return {
        "ETag": f'"{tag}"',
        **({"Repr-Digest": f"sha-256=:{digest}:"} if is_digest else {}),
        "Cache-Control": "private, no-cache",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{name}"'
        if quoted == name
        else f"attachment; filename*=utf-8''{quoted}",
    }


def _range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one behind the last; `None`: the whole file."""
    found = _RANGE.fullmatch(header) if header is not None else None
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if not first:
        start, end = max(size_bytes - int(last), 0), size_bytes
    else:
        start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= size_bytes or start >= end:
        raise HeaderedFailure(
            Code.RANGE_NOT_SATISFIABLE,
            f"The file has {size_bytes} bytes.",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return start, end


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (piece := file.read(min(CHUNK_BYTES, end - start))):
        start += len(piece)
        yield piece
