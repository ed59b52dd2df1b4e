"""Prefixed ids that sort by the time they were made: `job_` + 10 characters of milliseconds + 16 random ones."""

from __future__ import annotations

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"(net|dat|job|key|upl|aud|msg|whs)_[0-9a-hjkmnp-tv-z]{26}")


def _base32(value: int, length: int) -> str:
    return "".join(_ALPHABET[(value >> (5 * i)) & 31] for i in reversed(range(length)))


def new_id(prefix: str) -> str:
    """A ULID in lower case behind `prefix` (github.com/ulid/spec)."""
    return f"{prefix}_{_base32(time.time_ns() // 1_000_000, 10)}{_base32(secrets.randbits(80), 16)}"


def is_id(value: str, prefix: str) -> bool:
    return bool(_PATTERN.fullmatch(value)) and value.startswith(f"{prefix}_")
