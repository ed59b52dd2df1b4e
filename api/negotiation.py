"""Which of the forms an answer has the sender wants (RFC 9110, 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

_QUALITY = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")


def preferred(accept: str | None, offered: Sequence[str]) -> str:
    """The media type of `offered` that `accept` likes best; of equals the first. The first of all where none will do,
    as everywhere here: an answer is JSON whatever is asked for."""
    ranges = [_range(part) for part in (accept or "*/*").lower().split(",") if part.strip()]
    return max(offered, key=lambda media: _quality(media, ranges))


def _range(part: str) -> tuple[str, float]:
    """A media range and its quality; 1 where none is written as it should be."""
    media, *parameters = [piece.strip() for piece in part.split(";")]
    found = next((match for piece in parameters if (match := _QUALITY.fullmatch(piece))), None)
    return media, 1.0 if found is None else float(found[1])


def _quality(media: str, ranges: Sequence[tuple[str, float]]) -> float:
    """That of the most specific range that covers `media`."""
    for wanted in (media, f"{media.partition('/')[0]}/*", "*/*"):
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0
