"""Whether a request that needs everything would find everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from kombu.connection import Connection
from kombu.exceptions import OperationalError
from sqlalchemy import select

from models.blobs import Blobs
from models.broker import celery_settings
from models.database import Database
from models.errors import Failure
from models.tables import Key
from models.views import Readiness

BROKER_SECONDS = 2
KEPT_SECONDS = 1.0
_IMPATIENT = {"socket_timeout": BROKER_SECONDS, "socket_connect_timeout": BROKER_SECONDS, "max_retries": 1}


class ReadinessCheck:
    """Looks at most once a second, one look at a time, however often it is asked."""

    def __init__(self, database: Database, blobs: Blobs, broker_url: str) -> None:
        self._database, self._blobs, self._broker_url = database, blobs, broker_url
        self._lock = threading.Lock()
        self._last: tuple[float, Readiness] | None = None

    def look(self) -> Readiness:
        with self._lock:
            if self._last is None or self._last[0] < time.monotonic() - KEPT_SECONDS:
                checks = {
                    "database": _said(self._ask_database),
                    "broker": _said(self._ask_broker),
                    "blobs": _said(self._ask_blobs),
                }
                is_ready = all(said == "ok" for said in checks.values())
                self._last = time.monotonic(), Readiness(status="ok" if is_ready else "unavailable", checks=checks)
            return self._last[1]

    def _ask_database(self) -> None:
        with self._database.read() as session:
            session.execute(select(Key.id).limit(1))

    def _ask_broker(self) -> None:
        options = celery_settings(self._broker_url)["broker_transport_options"] | _IMPATIENT
        with Connection(self._broker_url, transport_options=options) as connection:  # type: ignore[no-untyped-call]
            connection.default_channel.client.ping()

    def _ask_blobs(self) -> None:
        self._blobs.ping()


def _said(ask: Callable[[], None]) -> str:
    try:
        ask()
    except Failure as failure:
        return failure.message
    except (OperationalError, OSError) as error:
        return f"does not answer ({type(error).__name__})"
    return "ok"
