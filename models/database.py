"""One database for every process: SQLite on one machine, PostgreSQL between several.

Synchronous on purpose: one set of statements. One request or one task is one transaction, committed at its edge.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, Table, create_engine, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from models.errors import Code, Failure
from models.tables import Base

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"

BUSY_SECONDS = 5.0
LOCK_ATTEMPTS = 4
POOL_SIZE = 20
_READ_ONLY: dict[str, dict[str, Any]] = {
    "sqlite": {"sqlite_begin": "DEFERRED"},
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}
_MIGRATION_LOCK = 0x6D6F64656C  # any number that only migrations take
_NO_ANSWER = ("locked", "busy", "unable to open", "disk i/o", "disk is full")


class Database:
    """An engine and its sessions. Safe to share between threads; make one in each process, after any fork."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that is committed when the block ends and rolled back when it raises.

        Rows stay readable afterwards. On SQLite the write lock is taken at the start, with retries, so that nothing
        inside the block fails for want of it. Raises `Failure` with `unavailable` when the database does not answer.
        """
        with _no_answer_is_a_failure(), Session(self.engine, expire_on_commit=False) as session:
            _begin(session)
            yield session
            session.commit()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment and never commits; readers wait for nobody.

        Raises `Failure` with `unavailable` when the database does not answer.
        """
        with _no_answer_is_a_failure(), Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options=_READ_ONLY[self.engine.dialect.name])
            yield session

    def close(self) -> None:
        self.engine.dispose()


def now(session: Session) -> datetime:
    """The database's time: workers on several hosts agree on it. SQLite has one host, and that host's clock."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    moment: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
    return moment.astimezone(UTC)


def lock(session: Session, name: str) -> None:
    """Until the transaction ends, no other one that asks for the lock of this name goes on. SQLite has one writer."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})


def upsert(session: Session, row: Base, *, keep: tuple[str, ...] = ()) -> None:
    """Insert `row`, or overwrite the one with its primary key, but for the columns in `keep`. One statement."""
    table = cast(Table, type(row).__table__)
    values = {column.name: getattr(row, column.name) for column in table.columns}
    key = [column.name for column in table.primary_key.columns]
    changes = {name: value for name, value in values.items() if name not in key and name not in keep}
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    session.execute(dialect.insert(type(row)).values(values).on_conflict_do_update(index_elements=key, set_=changes))


def migrate(url: str) -> None:
    """Bring the schema to the newest version. Safe to call from several processes at once."""
    engine = _engine(url)
    try:
        with _no_answer_is_a_failure(), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL lock_timeout = '60s'"))
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            command.upgrade(migration_config(connection), "head")
    finally:
        engine.dispose()


def migration_config(connection: Connection) -> Config:
    """Alembic's configuration, bound to a connection whose transaction the caller owns."""
    config = Config(MIGRATIONS / "alembic.ini")
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise ValueError(f"database_url must begin with sqlite:/// or postgresql://, not {parsed.drivername}://")


def _sqlite(url: URL) -> Engine:
    if not url.database or url.database == ":memory:":
        raise ValueError("database_url must name a file: several processes share the database")
    Path(url.database).resolve().parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        hide_parameters=True,  # what rows hold is no matter for a log
        pool_size=POOL_SIZE,
        max_overflow=POOL_SIZE,
        pool_timeout=BUSY_SECONDS,
        connect_args={"timeout": BUSY_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver's own BEGIN would come late, and deferred
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin_immediate(connection: Connection) -> None:
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url,
        hide_parameters=True,
        pool_size=POOL_SIZE,
        max_overflow=POOL_SIZE,
        pool_timeout=BUSY_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": int(BUSY_SECONDS),
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            # A process stopped in the middle of a transaction must not hold its rows for long.
            "options": "-c timezone=UTC -c lock_timeout=5s -c idle_in_transaction_session_timeout=15s",
        },
    )


def _begin(session: Session) -> None:
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            session.connection()
            return
        except OperationalError as error:
            if session.get_bind().dialect.name != "sqlite" or "locked" not in str(error.orig):
                raise
            session.rollback()
            if attempt == LOCK_ATTEMPTS:
                raise
            time.sleep(random.uniform(0.01, 0.05) * 2**attempt)  # noqa: S311


@contextmanager
def _no_answer_is_a_failure() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise Failure(Code.UNAVAILABLE, "Every database connection is in use.") from error
    except DBAPIError as error:
        if not _is_no_answer(error):
            raise
        raise Failure(Code.UNAVAILABLE, "The database does not answer.") from error


def _is_no_answer(error: DBAPIError) -> bool:
    """Whether the connection was lost, or the database is in trouble. SQLite says OperationalError also to a statement
    that is wrong; PostgreSQL never does."""
    if error.connection_invalidated:
        return True
    if type(error.orig).__module__.startswith("sqlite3"):
        return isinstance(error, OperationalError) and any(words in str(error.orig).lower() for words in _NO_ANSWER)
    return isinstance(error, (OperationalError, InterfaceError))
