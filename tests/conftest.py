"""Databases and brokers for every test: SQLite files and real servers, all built by the migrations."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from models.database import Database, migrate
from tests.object_store import ObjectStore
from tests.services import Postgres, Valkey

TEMPLATE = "migrated"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, then those with the most tests: whole files go to whoever is free, and what takes
    minutes must not begin when all the rest is done."""
    slow, tests = Counter[Path](), Counter(item.path for item in items)
    slow.update(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], -tests[item.path], str(item.path)))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The server of this session. A test that stops or pauses one starts its own `Postgres()`."""
    server = Postgres()
    try:
        server.create(TEMPLATE)
        migrate(server.url(TEMPLATE))
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.sqlite3"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database of its own for one test, with every table."""
    name = f"test_{uuid4().hex}"
    postgres.create(name, TEMPLATE)
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def sqlite_url(_migrated_file: Path, tmp_path: Path) -> str:
    """A database file of its own for one test, with every table."""
    path = tmp_path / "modelpress.sqlite3"
    shutil.copyfile(_migrated_file, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Both databases, one after the other."""
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param]
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Both databases, opened."""
    opened = Database(database_url)
    yield opened
    opened.close()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def _shared_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('shared')}/modelpress.sqlite3"
        migrate(url)
    else:
        server: Postgres = request.getfixturevalue("postgres")
        name = f"shared_{uuid4().hex}"
        server.create(name, TEMPLATE)
        url = server.url(name)
    opened = Database(url)
    yield opened
    opened.close()


@pytest.fixture
def session(_shared_database: Database) -> Iterator[Session]:
    """A transaction on both databases, empty at the start and rolled back at the end: the fastest way to test rows."""
    with Session(_shared_database.engine, expire_on_commit=False) as opened:
        opened.connection()
        yield opened


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """A broker of its own for one test, to flush, pause and stop at will; its `url` is Celery's `broker_url`."""
    server = Valkey()
    yield server
    server.close()


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server for the session. A test that stops or pauses one starts its own `ObjectStore()`."""
    server = ObjectStore()
    yield server
    server.close()
