"""Which stored files are known to be undamaged."""

from __future__ import annotations

import threading
import time
from pathlib import Path

VERIFIED_SECONDS = 600.0
MAX_VERIFIED = 10_000


class VerifiedFiles:
    """Remembers for ten minutes which stored files were read whole and matched their SHA-256."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int], float] = {}
        self._lock = threading.Lock()

    def has(self, path: Path, sha256: str) -> bool:
        with self._lock:
            return self._known.get(self._key(path, sha256), -VERIFIED_SECONDS) > time.monotonic() - VERIFIED_SECONDS

    def add(self, path: Path, sha256: str) -> None:
        with self._lock:
            if len(self._known) >= MAX_VERIFIED:
                self._known.clear()
            self._known[self._key(path, sha256)] = time.monotonic()

    @staticmethod
    def _key(path: Path, sha256: str) -> tuple[str, int, int, int]:
        stat = path.stat()
        return sha256, stat.st_ino, stat.st_size, stat.st_mtime_ns
