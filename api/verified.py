"""Which stored bytes are known to be undamaged."""

from __future__ import annotations

import threading
import time

from models.blobs import StoredBlob

VERIFIED_SECONDS = 600.0
MAX_VERIFIED = 10_000


class VerifiedBlobs:
    """Remembers for ten minutes which versions of stored bytes were read whole and matched their SHA-256."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def has(self, stored: StoredBlob) -> bool:
        with self._lock:
            at = self._known.get((stored.sha256, stored.version), -VERIFIED_SECONDS)
            return at > time.monotonic() - VERIFIED_SECONDS

    def add(self, stored: StoredBlob) -> None:
        with self._lock:
            if len(self._known) >= MAX_VERIFIED:
                self._known.clear()
            self._known[stored.sha256, stored.version] = time.monotonic()
