"""What the image test says on its way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(what: str, build: Callable[[], T]) -> T:
    started = time.monotonic()
    result = build()
    print(f"built   {what} ({time.monotonic() - started:.0f} s)", flush=True)
    return result


def claim(truth: bool, what: str, otherwise: str = "") -> None:
    """Raises `RuntimeError` with `otherwise` when it is not so."""
    if not truth:
        raise RuntimeError(f"not so: {what}: {otherwise}")
    print(f"shown   {what}", flush=True)
