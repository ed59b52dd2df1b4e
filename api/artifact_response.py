"""Downloads: one range at most, a strong ETag that is the content's SHA-256, a digest to check against."""

from __future__ import annotations

import base64
import os

from starlette.responses import FileResponse, MalformedRangeHeader, RangeNotSatisfiable, Response

from api.errors import HeaderedFailure
from models.errors import Code

CHUNK_BYTES = 1 << 20


class ArtifactResponse(FileResponse):
    """`Range` with several ranges, or one that makes no sense, gets the whole file (RFC 9110, 14.2)."""

    chunk_size = CHUNK_BYTES
    max_ranges = 1

    def __init__(self, path: os.PathLike[str], *, name: str, content_type: str, sha256: str) -> None:
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        super().__init__(
            path,
            media_type=content_type,
            filename=name,
            headers={
                "ETag": f'"{sha256}"',
                "Repr-Digest": f"sha-256=:{digest}:",
                "Cache-Control": "private, no-cache",
            },
        )

    def matches(self, if_none_match: str) -> bool:
        """Whether an If-None-Match header names this content."""
        tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return "*" in tags or self.headers["etag"] in tags

    def not_modified(self) -> Response:
        kept = {name: self.headers[name] for name in ("etag", "cache-control", "repr-digest")}
        return Response(status_code=304, headers=kept)

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []
        except RangeNotSatisfiable:
            raise HeaderedFailure(
                Code.RANGE_NOT_SATISFIABLE,
                f"The file has {file_size} bytes.",
                headers={"Content-Range": f"bytes */{file_size}"},
            ) from None
