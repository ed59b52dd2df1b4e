"""Which idempotency keys are being worked on in this process; between processes the database's primary key decides."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import Code, Failure


class InFlight:
    def __init__(self) -> None:
        self._keys: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, tenant: str, key: str) -> Iterator[None]:
        """Raises `Failure` with `idempotency_in_flight` while another request holds the key."""
        with self._lock:
            if (tenant, key) in self._keys:
                raise Failure(
                    Code.IDEMPOTENCY_IN_FLIGHT, "The first request with this Idempotency-Key is still being answered."
                )
            self._keys.add((tenant, key))
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard((tenant, key))
