"""The servers the tests bring are real, and go when they should."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import inspect, text

from models.database import Database
from models.errors import Code, Failure
from models.tables import Base
from tests.services import Postgres, Valkey

HOLDER = """
import sys, time
from tests.services import Postgres, Valkey
for server in (Postgres(), Valkey()):
    print(server.pid, server.folder, flush=True)
time.sleep(600)
"""


def test_a_test_starts_with_every_table_and_no_row(database: Database) -> None:
    assert set(Base.metadata.tables) <= set(inspect(database.engine).get_table_names())
    with database.read() as session:
        assert all(session.execute(table.select()).first() is None for table in Base.metadata.tables.values())


def test_a_broker_that_is_flushed_has_forgotten(valkey: Valkey) -> None:
    client = valkey.client()
    client.lpush("queue", "message")
    valkey.flush()
    assert client.llen("queue") == 0


def test_a_paused_broker_answers_after_it_goes_on(valkey: Valkey) -> None:
    client = redis.Redis(unix_socket_path=str(valkey.socket), socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
    valkey.pause()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    valkey.resume()
    assert client.ping()


def test_a_stopped_postgres_is_unavailable_and_comes_back_with_its_rows() -> None:
    server = Postgres()
    try:
        database = Database(server.url("postgres"))
        with database.transaction() as session:
            session.execute(text("CREATE TABLE t AS SELECT 7 AS x"))
        server.stop()
        with pytest.raises(Failure, match="does not answer") as refused, database.read():
            pass
        assert refused.value.code is Code.UNAVAILABLE
        server.start()
        with database.read() as session:
            assert session.scalar(text("SELECT x FROM t")) == 7
        database.close()
    finally:
        server.close()


def test_no_server_outlives_a_killed_test_run() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert holder.stdout is not None
    lines = [holder.stdout.readline().split() for _ in range(2)]
    servers = [psutil.Process(int(pid)) for pid, _ in lines]
    family = [*servers, *(child for server in servers for child in server.children(recursive=True))]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(process.is_running() for process in family):
        time.sleep(0.02)
    for _, folder in lines:
        shutil.rmtree(folder)
    assert not any(process.is_running() for process in family)
