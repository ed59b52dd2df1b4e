"""What the state machines share: how long they run, and how a fence is taken out of the product for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, Phase, settings
from sqlalchemy import event

from models.database import Database

QUICK = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    report_multiple_bugs=False,
)
LONG = settings(QUICK, max_examples=400, stateful_step_count=40)
"""Long enough to find what is missing; it ends as soon as it has."""


class Vanished(Exception):
    """The database went away."""


@contextmanager
def changed(module: ModuleType, old: str, new: str) -> Iterator[None]:
    """`module` with one piece of its source replaced, while the block runs."""
    path = Path(module.__file__ or "")
    source = path.read_text()
    assert source.count(old) == 1, f"{old!r} is not, or not once, in {path.name}"
    try:
        exec(compile(source.replace(old, new), path, "exec"), module.__dict__)
        yield
    finally:
        exec(compile(source, path, "exec"), module.__dict__)


@contextmanager
def unsynced(url: str) -> Iterator[Database]:
    """A database that waits for no disk: thousands of transactions that need not outlive the test."""
    database = Database(url)
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    try:
        yield database
    finally:
        database.close()
