"""One database for many processes: transactions, snapshots, migrations."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, func, inspect, select, text
from sqlalchemy.exc import InternalError, OperationalError, ProgrammingError

from models.database import Database, migrate, migration_config, now, upsert
from models.errors import Code, Failure
from models.tables import Base, Idempotency, Key
from tests.models.rows import at
from tests.models.test_transitions import together
from tests.services import Postgres


def key(key_id: str, *, name: str = "first", created_at: datetime | None = None) -> Key:
    secret = key_id.encode().ljust(32)
    return Key(id=key_id, tenant="a", name=name, secret_sha256=secret, scopes="read", created_at=created_at or at(0))


def test_the_migrations_build_exactly_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_keys_keep_their_rights_when_rights_become_scopes_and_back(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'old.sqlite3'}")
    row = "INSERT INTO keys (id, tenant, name, secret_sha256, created_at, {0}) VALUES ('{1}', 'a', '', '{1}', '', {2})"

    def rights(column: str) -> dict[str, object]:
        found = connection.execute(text(f"SELECT id, {column} FROM keys"))
        return dict(found.tuples().all())

    with engine.begin() as connection:
        config = migration_config(connection)
        command.upgrade(config, "0006")
        for key_id, read_only in (("reader", 1), ("writer", 0)):
            connection.execute(text(row.format("read_only", key_id, read_only)))
        command.upgrade(config, "0008")
        assert rights("scopes") == {"reader": "read", "writer": "read upload submit delete"}
        connection.execute(text(row.format("scopes", "sender", "'read upload'")))
        command.downgrade(config, "0006")
        assert rights("read_only") == {"reader": 1, "writer": 0, "sender": 1}
    engine.dispose()


def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    def fail() -> None:
        with database.transaction() as session:
            session.add(key("key_1"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Key)) == 0


def test_rows_stay_readable_after_their_transaction(database: Database) -> None:
    with database.transaction() as session:
        written = key("key_1")
        session.add(written)
    with database.read() as session:
        found = session.scalars(select(Key)).one()
    assert (written.name, found.name, found.revoked_at) == ("first", "first", None)


def test_a_reader_sees_one_moment_and_waits_for_no_writer(database: Database) -> None:
    with database.read() as reader:
        assert reader.scalar(select(func.count()).select_from(Key)) == 0
        with database.transaction() as writer:
            writer.add(key("key_1"))
            writer.flush()
            assert reader.scalar(select(func.count()).select_from(Key)) == 0
        assert reader.scalar(select(func.count()).select_from(Key)) == 0
    with database.read() as reader:
        assert reader.scalar(select(func.count()).select_from(Key)) == 1


def test_what_is_written_in_a_read_is_not_kept(database: Database) -> None:
    def write() -> None:
        with database.read() as session:
            session.add(key("key_1"))
            session.flush()

    if database.engine.dialect.name == "postgresql":
        with pytest.raises(InternalError, match="read-only"):
            write()
    else:
        write()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Key)) == 0


def test_times_are_utc_whatever_zone_they_came_in(database: Database) -> None:
    there = timezone(timedelta(hours=-7))
    with database.transaction() as session:
        session.add(key("key_1", created_at=datetime(2030, 1, 1, 12, tzinfo=there)))
    with database.read() as session:
        assert session.scalars(select(Key.created_at)).one() == datetime(2030, 1, 1, 19, tzinfo=UTC)
        assert session.scalars(select(Key.created_at)).one().tzinfo is UTC


def test_the_time_is_the_databases_and_moves_within_a_transaction(database: Database) -> None:
    with database.transaction() as session:
        first, second = now(session), now(session)
        assert first < second < first + timedelta(minutes=1)
        assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_upsert_overwrites_all_but_what_it_keeps(database: Database) -> None:
    def row(body: str, seconds: float) -> Idempotency:
        return Idempotency(tenant="a", key="k", body_sha256=body, job_id=f"job_{body}", created_at=at(seconds))

    with database.transaction() as session:
        upsert(session, row("first", 1))
        upsert(session, row("second", 2), keep=("created_at",))
        found = session.scalars(select(Idempotency)).one()
        assert (found.body_sha256, found.job_id, found.created_at) == ("second", "job_second", at(1))


def test_many_writers_never_meet_a_locked_database(database: Database) -> None:
    def write(thread: int) -> None:
        for number in range(10):
            with database.transaction() as session:
                session.scalar(select(func.count()).select_from(Key))  # a read first: the classic way to be locked out
                session.add(key(f"key_{thread}_{number}"))

    together(*[lambda thread=thread: write(thread) for thread in range(6)])
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Key)) == 60


def test_a_lock_held_for_long_is_unavailable_and_not_a_crash(sqlite_url: str) -> None:
    holder, other = Database(sqlite_url), Database(sqlite_url)
    other.engine = create_engine(sqlite_url, connect_args={"timeout": 0.01}, isolation_level="AUTOCOMMIT")
    with (
        holder.transaction(),
        pytest.raises(Failure, match="does not answer") as refused,
        other.transaction() as session,
    ):
        session.execute(text("BEGIN IMMEDIATE"))
    assert refused.value.code is Code.UNAVAILABLE
    assert refused.value.retryable
    holder.close()
    other.close()


def test_a_wrong_statement_is_our_mistake_and_not_an_outage(database: Database) -> None:
    with pytest.raises((OperationalError, ProgrammingError)), database.read() as session:
        session.execute(text("SELECT * FROM no_such_table"))


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    database = Database(f"postgresql://postgres@/modelpress?host={tmp_path}")
    with pytest.raises(Failure, match="The database does not answer") as refused, database.transaction():
        pass
    assert refused.value.code is Code.UNAVAILABLE


def test_a_connection_that_the_server_dropped_is_replaced(postgres: Postgres, postgres_url: str) -> None:
    database = Database(postgres_url)
    with database.read() as session:
        first = session.scalar(text("SELECT pg_backend_pid()"))
    with Database(postgres.url("postgres")).transaction() as session:
        session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": first})
    with database.read() as session:
        assert session.scalar(text("SELECT pg_backend_pid()")) != first
    database.close()


def test_a_worker_that_slept_in_a_transaction_loses_it_and_is_told(postgres_url: str) -> None:
    database = Database(postgres_url)

    def sleep() -> None:
        with database.transaction() as session:
            session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '20ms'"))
            session.add(key("key_1"))
            session.flush()
            time.sleep(0.5)

    with pytest.raises(Failure, match="does not answer"):
        sleep()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Key)) == 0
    database.close()


def test_sqlite_is_durable_and_keeps_its_references(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.read() as session:
        modes = {
            name: session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert modes == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


def test_folders_of_a_sqlite_file_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    migrate("sqlite:///var/lib/modelpress.sqlite3")
    assert (tmp_path / "var" / "lib" / "modelpress.sqlite3").is_file()


def test_several_processes_may_migrate_at_once(database_url: str, tmp_path: Path, postgres: Postgres) -> None:
    if database_url.startswith("sqlite"):
        url = f"sqlite:///{tmp_path}/fresh.sqlite3"
    else:
        postgres.create(f"fresh_{threading.get_native_id()}")
        url = postgres.url(f"fresh_{threading.get_native_id()}")
    command = [sys.executable, "-c", "import sys; from models.database import migrate; migrate(sys.argv[1])", url]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    database = Database(url)
    assert set(Base.metadata.tables) <= set(inspect(database.engine).get_table_names())
    database.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "must name a file: several processes share the database"),
        ("sqlite:///:memory:", "must name a file"),
        ("mysql://root@localhost/test", "must begin with sqlite:/// or postgresql://, not mysql://"),
    ],
)
def test_a_database_that_cannot_be_shared_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Database(url)


def test_a_write_waits_for_the_one_before_it(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with database.transaction():
            inside.set()
            go_on.wait()
            order.append("first")

    def second() -> None:
        inside.wait()
        threading.Timer(0.05, go_on.set).start()
        with database.transaction():
            order.append("second")

    together(first, second)
    assert order == ["first", "second"]
    database.close()
