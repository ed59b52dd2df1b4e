"""Every bad input, by its number, sent to the running service: its outcome is a 4xx or a rejection that says what to
change, nothing in it runs, nothing is lost, nothing answers 5xx."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from api.auth import create_key
from models import logs
from models.database import Database, migrate
from models.settings import Settings
from tests.api.conftest import NOBODY_LISTENS
from tests.api.serving import Api, served
from tests.bad_inputs import absent, datasets, networks, resumable, specs, tenancy, uploads, webhooks
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import Row

CHAPTERS = (
    uploads.ROWS,
    resumable.ROWS,
    networks.ROWS,
    specs.ROWS,
    datasets.ROWS,
    tenancy.ROWS,
    webhooks.ROWS,
    absent.ROWS,
)
ROWS = sorted((row for chapter in CHAPTERS for row in chapter), key=lambda row: row.number)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("service")
    settings = Settings(
        database_url=f"sqlite:///{folder}/modelpress.sqlite3",
        broker_url=NOBODY_LISTENS,
        blobs=str(folder / "blobs"),
        work=folder / "work",
        body_idle_seconds=1.0,
        body_minimum_bytes_per_second=1000,
        max_model_bytes=128 << 20,
        max_dataset_bytes=8 << 20,
        max_open_uploads=20,
        max_requests_per_second=None,
        webhook_secret="a master secret of thirty characters",
    )
    migrate(settings.database_url)
    database = Database(settings.database_url)
    with database.transaction() as session:
        create_key(session, "first", "without one nothing starts")
    database.close()
    with served(settings) as running:
        yield running


@pytest.fixture
def place(api: Api, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as running:
        place = Place(api, tmp_path, running)
        yield place
        place.settle()


def test_every_number_has_one_row() -> None:
    assert [row.number for row in ROWS] == list(range(1, 110))
    assert all(row.checks for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_bad_input(row: Row, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "modelpress.access")
    for check in row.checks:
        check(place)
    lines = [getattr(record, logs.FIELDS) for record in caplog.records if record.name == "modelpress.access"]
    allowed = {507} if row.number == 32 else set()
    assert [line for line in lines if line["status"] >= 500 and line["status"] not in allowed] == []
    assert "Traceback" not in caplog.text
    assert place.client.get("/healthz").status_code == 200
