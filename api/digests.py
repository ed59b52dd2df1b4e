"""Checksums that senders declare: `Content-Digest` and `Repr-Digest` (RFC 9530), `Upload-Checksum` (tus 1.0)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any

from models.errors import Code, Failure

TUS_ALGORITHMS = {"sha1": "sha1", "sha256": "sha256", "sha512": "sha512"}
"""Names of `Upload-Checksum`; every tus server has sha1."""

_HTTP_ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}
_MEMBER = re.compile(r"\s*([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*")


class Checksum:
    """What bytes must hash to, and the hash of those that came."""

    def __init__(self, header: str, algorithm: str, expected: bytes) -> None:
        self.header = header
        self._digest = hashlib.new(algorithm, usedforsecurity=False)
        self._expected = expected
        if len(expected) != self._digest.digest_size:
            raise Failure(Code.BAD_REQUEST, f"{header} has {len(expected)} bytes, which is no {algorithm}.")

    def update(self, chunk: bytes) -> None:
        self._digest.update(chunk)

    def check(self) -> None:
        """Raises `Failure` with `checksum_mismatch`."""
        if not hmac.compare_digest(self._digest.digest(), self._expected):
            raise mismatch(self.header)


def mismatch(header: str) -> Failure:
    return Failure(Code.CHECKSUM_MISMATCH, f"The bytes that came are not those of {header}; they were dropped.")


def checksums_of_part(headers: Mapping[str, str]) -> list[Checksum]:
    """What the bytes of one request must hash to. Raises `Failure` with `bad_request`, also when no algorithm that the
    sender offers is known: a check that is silently left out is worse than none."""
    found = []
    if (given := headers.get("upload-checksum")) is not None:
        name, _, encoded = given.strip().partition(" ")
        if name not in TUS_ALGORITHMS:
            raise _unknown("Upload-Checksum", TUS_ALGORITHMS)
        found.append(Checksum("Upload-Checksum", TUS_ALGORITHMS[name], _decoded("Upload-Checksum", encoded.strip())))
    if (given := headers.get("content-digest")) is not None:
        members = _members("Content-Digest", given)
        known = {name: members[name] for name in _HTTP_ALGORITHMS if name in members}
        if not known:
            raise _unknown("Content-Digest", _HTTP_ALGORITHMS)
        found += [Checksum("Content-Digest", _HTTP_ALGORITHMS[name], value) for name, value in known.items()]
    return found


def expected_sha256(headers: Mapping[str, str]) -> str | None:
    """The SHA-256 of the whole file, as 64 hex digits, from `Repr-Digest`. Raises as `checksums_of_part` does."""
    given = headers.get("repr-digest")
    if given is None:
        return None
    members = _members("Repr-Digest", given)
    if "sha-256" not in members:
        raise _unknown("Repr-Digest", {"sha-256": ""})
    if len(members["sha-256"]) != hashlib.sha256().digest_size:
        raise Failure(Code.BAD_REQUEST, f"Repr-Digest has {len(members['sha-256'])} bytes, which is no sha-256.")
    return members["sha-256"].hex()


def _members(header: str, value: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for member in value.split(","):
        match = _MEMBER.fullmatch(member)
        if match is None:
            raise Failure(Code.BAD_REQUEST, f"{header} is not as RFC 9530 writes it: sha-256=:BASE64:")
        found[match[1]] = _decoded(header, match[2])
    return found


def _decoded(header: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # of base64, or of characters that are not ASCII
        raise Failure(Code.BAD_REQUEST, f"{header} does not hold base64.") from None


def _unknown(header: str, known: Mapping[str, Any]) -> Failure:
    return Failure(Code.BAD_REQUEST, f"{header} names no algorithm known here: {', '.join(known)}.")
