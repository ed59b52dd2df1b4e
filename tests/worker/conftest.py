"""A deployment for one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import Valkey
from tests.worker.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path, sqlite_url: str, valkey: Valkey) -> Iterator[Fleet]:
    """On SQLite, no worker started yet."""
    with Fleet(tmp_path, sqlite_url, valkey) as fleet:
        yield fleet
