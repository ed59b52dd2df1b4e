"""One line of the table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """`ratio` is `value` over that of the row below, the limit it is held against, taken round by round."""

    what: str
    value: float
    unit: str
    ratio: float | None
