"""The parts of tus 1.0 (tus.io/protocols/resumable-upload) that are not about one upload: versions, headers, method."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from email.utils import format_datetime
from typing import Annotated

from fastapi import Header, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.digests import TUS_ALGORITHMS
from models.errors import Code, Failure

VERSION = "1.0.0"
EXTENSIONS = "creation,checksum,expiration,termination"
MEDIA_TYPE = "application/offset+octet-stream"
MAX_METADATA_CHARACTERS = 4096

_PATH = "/uploads"
_METHOD = re.compile(rb"[A-Z]{1,16}")
_NUMBER = re.compile(r"[0-9]{1,18}")
_KEY = re.compile(r"[!-+\--~]+")

TusResumable = Annotated[
    str | None, Header(alias="Tus-Resumable", description="The version of the protocol: `1.0.0`.", examples=[VERSION])
]
UploadLength = Annotated[
    str | None,
    Header(alias="Upload-Length", description="The length of the whole file, in bytes.", examples=["1048576"]),
]
UploadMetadata = Annotated[
    str | None,
    Header(
        alias="Upload-Metadata",
        description="Pairs of a key and base64; `filename` or `name` is the name, the others are given back as sent.",
        examples=["filename bmV0LnB0Mg=="],
    ),
]
UploadOffset = Annotated[
    str | None, Header(alias="Upload-Offset", description="How many bytes the service has already.", examples=["0"])
]
UploadChecksum = Annotated[
    str | None,
    Header(alias="Upload-Checksum", description="Of this part: `sha1`, `sha256` or `sha512`, a space, base64."),
]
ContentDigest = Annotated[
    str | None, Header(alias="Content-Digest", description="Of this body: `sha-256=:BASE64:` (RFC 9530), or sha-512.")
]
ReprDigest = Annotated[
    str | None, Header(alias="Repr-Digest", description="Of the whole file: `sha-256=:BASE64:` (RFC 9530).")
]


class TusMiddleware:
    """Pure ASGI. Every answer under `/uploads` says `Tus-Resumable`, and `X-HTTP-Method-Override` is the method there,
    for clients that cannot send PATCH or DELETE."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] == _PATH or scope["path"].startswith(_PATH + "/")):
            await self.app(scope, receive, send)
            return
        override = dict(scope["headers"]).get(b"x-http-method-override", b"").strip().upper()
        if _METHOD.fullmatch(override):
            scope = {**scope, "method": override.decode()}

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Tus-Resumable"] = VERSION
            await send(message)

        await self.app(scope, receive, send_with_version)


def refuse_other_versions(given: str | None) -> None:
    """Raises `Failure` with `unsupported_tus_version`, also for none at all, as the protocol says."""
    if given != VERSION:
        said = "nothing" if given is None else repr(given[:20])
        raise Failure(Code.UNSUPPORTED_TUS_VERSION, f"Tus-Resumable says {said}; {VERSION} is spoken here.")


def number(header: str, value: str | None) -> int:
    """Raises `Failure` with `bad_request`."""
    if value is None or not _NUMBER.fullmatch(value.strip()):
        raise Failure(Code.BAD_REQUEST, f"{header} must be a number of bytes.")
    return int(value)


def http_date(moment: datetime) -> str:
    return format_datetime(moment.replace(microsecond=0), usegmt=True)


def name_in(metadata: str | None) -> str | None:
    """The file's name in an `Upload-Metadata`. Raises `Failure` with `bad_request` when that is malformed."""
    if metadata is None:
        return None
    if len(metadata) > MAX_METADATA_CHARACTERS:
        raise _malformed(f"it has more than {MAX_METADATA_CHARACTERS} characters")
    pairs: dict[str, str] = {}
    for pair in metadata.split(",") if metadata.strip() else ():
        key, _, encoded = pair.strip().partition(" ")
        if not _KEY.fullmatch(key) or key in pairs:
            raise _malformed("a key is missing, repeated, or has a character that is not ASCII")
        try:
            pairs[key] = base64.b64decode(encoded.strip(), validate=True).decode(errors="replace")
        except ValueError:  # of base64, or of characters that are not ASCII
            raise _malformed(f"the value of {key[:40]} is not base64") from None
    return pairs.get("filename") or pairs.get("name")


def has_body(request: Request) -> bool:
    return "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"


def discovery(max_size_bytes: int) -> dict[str, str]:
    """The headers that tell a client what is spoken here."""
    return {
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(max_size_bytes),
        "Tus-Checksum-Algorithm": ",".join(TUS_ALGORITHMS),
    }


def _malformed(why: str) -> Failure:
    return Failure(Code.BAD_REQUEST, f"Upload-Metadata is malformed: {why}.")
