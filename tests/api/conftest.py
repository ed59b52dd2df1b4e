"""A running service for each test, on SQLite with a broker that is not there, unless the test brings others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from api.auth import create_key
from models.database import Database
from models.settings import Settings
from tests.api.serving import Api, served

NOBODY_LISTENS = "redis://127.0.0.1:1/0"


@pytest.fixture
def settings(sqlite_url: str, tmp_path: Path) -> Settings:
    return Settings(
        database_url=sqlite_url,
        broker_url=NOBODY_LISTENS,
        blobs=tmp_path / "blobs",
        work=tmp_path / "work",
        open_access=True,
        body_idle_seconds=2.0,
        max_model_bytes=64 << 20,
        max_dataset_bytes=64 << 20,
    )


@pytest.fixture
def serve(settings: Settings) -> Iterator[Callable[..., Api]]:
    """Starts a service with some settings changed."""
    with ExitStack() as running:
        yield lambda **changes: running.enter_context(served(settings.model_copy(update=changes)))


@pytest.fixture
def api(serve: Callable[..., Any]) -> Api:
    served_api: Api = serve()
    return served_api


@pytest.fixture
def two_keys(settings: Settings) -> tuple[str, str]:
    """Keys of the tenants `a` and `b`."""
    database = Database(settings.database_url)
    with database.transaction() as session:
        secrets = create_key(session, "a", "first"), create_key(session, "b", "second")
    database.close()
    return secrets
