"""Any order of events at all in the life of an upload, against a model small enough to be believed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from models import inspections
from models.blobs import Blob
from models.database import Database
from models.inspections import Upload, UploadTable
from models.statuses import UploadStatus
from models.tables import Base, Dataset, Network
from tests.models.machines import LONG, QUICK, Vanished, changed, unsynced
from tests.models.rows import ERROR, LEASE, at
from tests.models.test_inspections import INSPECTIONS

MAX_STRIKES = 3
Token = tuple[str, int]


@dataclass
class Expected:
    """What an upload must look like. It has a lease while somebody inspects it."""

    table: UploadTable
    tenant: str
    created: float
    status: UploadStatus = UploadStatus.INSPECTING
    attempt: int = 0
    strikes: int = 0
    lease: float | None = None

    @property
    def waits(self) -> bool:
        return self.status is UploadStatus.INSPECTING and self.lease is None


class UploadMachine(RuleBasedStateMachine):
    """Clients, inspectors that may be long dead, and the sweep. A token is (upload, attempt), as a worker remembers
    it."""

    database: ClassVar[Database]
    tokens = Bundle("tokens")
    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.expected: dict[str, Expected] = {}
        self.tables: dict[str, UploadTable] = {}
        with self.database.transaction() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())

    @rule(target=uploads, table=st.sampled_from([Network, Dataset]), tenant=st.sampled_from("ab"))
    def upload(self, table: UploadTable, tenant: str) -> str:
        self.clock += 1
        blob = Blob("a" * 64, 3)
        with self.database.transaction() as session:
            row = inspections.add_upload(session, table, tenant=tenant, name="file", blob=blob, now=at(self.clock))
            self.expected[row.id] = Expected(table, tenant, self.clock)
            self.tables[row.id] = table
            return row.id

    @rule(target=tokens)
    def claim(self) -> Any:
        with self.database.transaction() as session:
            row = inspections.claim_upload(session, lease_until=at(self.clock + LEASE))
            token = None if row is None else (row.id, row.attempt)
        waiting = {upload_id: upload for upload_id, upload in self.expected.items() if upload.waits}
        if token is None:
            assert not waiting
            return multiple()
        oldest = min(waiting, key=lambda upload_id: waiting[upload_id].created)
        waiting[oldest].attempt += 1
        waiting[oldest].lease = self.clock + LEASE
        assert token == (oldest, waiting[oldest].attempt)
        return token

    @rule(target=tokens)
    def another_takes_over(self) -> Any:
        """The usual way to a token that is stale."""
        self.clock += LEASE + 1
        self.sweep()
        return self.claim()

    @rule()
    def the_dead_wake(self) -> None:
        """Nothing that an attempt says after its time does anything."""
        for upload_id, upload in self.expected.items():
            for attempt in range(upload.attempt + 1):
                if not self._holds((upload_id, attempt)):
                    for what in ("beat", "accept", "reject", "give back", "strike"):
                        assert not self._say((upload_id, attempt), what)

    @rule(seconds=st.sampled_from([1, LEASE + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds

    @rule(token=tokens, what=st.sampled_from(["beat", "accept", "reject", "give back"]))
    def say(self, token: Token, what: str) -> None:
        held = self._holds(token)
        assert self._say(token, what) is held
        if held:
            upload = self.expected[token[0]]
            upload.lease = self.clock + LEASE if what == "beat" else None
            ends = {"accept": UploadStatus.READY, "reject": UploadStatus.REJECTED}
            upload.status = ends.get(what, upload.status)

    @rule(token=tokens)
    def strike(self, token: Token) -> None:
        held = self._holds(token)
        assert self._say(token, "strike") == (self._struck(token[0]) if held else None)

    @rule(token=tokens)
    def database_vanishes_before_the_commit(self, token: Token) -> None:
        """Whatever this attempt was about to say, nothing of it happened."""
        table = self.tables[token[0]]
        with suppress(Vanished), self.database.transaction() as session:
            inspections.accept_upload(session, table, *token, INSPECTIONS[table])
            raise Vanished

    @rule()
    def sweep(self) -> None:
        with self.database.transaction() as session:
            swept = inspections.sweep_uploads(session, max_strikes=MAX_STRIKES, now=at(self.clock))
        lapsed = [
            upload_id
            for upload_id, upload in self.expected.items()
            if upload.lease is not None and upload.lease < self.clock
        ]
        assert dict(swept) == {upload_id: self._struck(upload_id) for upload_id in lapsed}

    @rule(upload_id=uploads, right=st.booleans())
    def delete(self, upload_id: str, right: bool) -> None:
        """Also one that somebody inspects: what they say of it later does nothing."""
        upload = self.expected.get(upload_id)
        mine = upload is not None and right
        tenant = upload.tenant if upload is not None and right else "z"
        with self.database.transaction() as session:
            assert inspections.delete_upload(session, self.tables[upload_id], tenant, upload_id) is mine
        if mine:
            del self.expected[upload_id]

    @invariant()
    def the_database_says_what_the_model_says(self) -> None:
        with self.database.read() as session:
            rows: list[Upload] = [*session.scalars(select(Network)), *session.scalars(select(Dataset))]
            assert inspections.waiting_count(session) == sum(upload.waits for upload in self.expected.values())
        assert {row.id for row in rows} == set(self.expected)
        for row in rows:
            upload = self.expected[row.id]
            assert (row.status, row.attempt, row.strikes, row.tenant) == (
                upload.status,
                upload.attempt,
                upload.strikes,
                upload.tenant,
            )
            assert row.lease_expires_at == (None if upload.lease is None else at(upload.lease))
            assert (row.inspection is not None) == (upload.status is UploadStatus.READY)
            assert (row.error is not None) == (upload.status is UploadStatus.REJECTED)

    def teardown(self) -> None:
        """Every upload has a way to an end, whatever happened to it: inspectors die, and new ones die as well."""
        for _ in range(MAX_STRIKES + 1):
            self.time_passes(LEASE + 1)
            self.sweep()
            while any(upload.waits for upload in self.expected.values()):
                self.claim()
        assert all(upload.status is not UploadStatus.INSPECTING for upload in self.expected.values())

    def _say(self, token: Token, what: str) -> object:
        table = self.tables[token[0]]
        with self.database.transaction() as session:
            match what:
                case "beat":
                    return inspections.beat_upload(session, table, *token, at(self.clock + LEASE))
                case "accept":
                    return inspections.accept_upload(session, table, *token, INSPECTIONS[table])
                case "reject":
                    return inspections.reject_upload(session, table, *token, ERROR)
                case "give back":
                    return inspections.give_back_upload(session, table, *token)
                case _:
                    return inspections.strike_upload(session, table, *token, ERROR, MAX_STRIKES)

    def _holds(self, token: Token) -> bool:
        upload = self.expected.get(token[0])
        return upload is not None and upload.attempt == token[1] and upload.lease is not None

    def _struck(self, upload_id: str) -> UploadStatus:
        upload = self.expected[upload_id]
        upload.lease = None
        upload.strikes += 1
        if upload.strikes == MAX_STRIKES:
            upload.status = UploadStatus.REJECTED
        return upload.status


def machine_on(database: Database) -> type[UploadMachine]:
    return type("Machine", (UploadMachine,), {"database": database})


def test_no_order_of_events_breaks_an_upload(database: Database) -> None:
    run_state_machine_as_test(machine_on(database), settings=QUICK)


FENCES = {
    "any attempt": (
        "table.attempt == attempt, table.lease_expires_at.is_not(None)",
        "table.lease_expires_at.is_not(None)",
    ),
    "any moment": ("table.attempt == attempt, table.lease_expires_at.is_not(None)", "table.attempt == attempt"),
    "any lease": (
        "select(table.id).where(table.lease_expires_at < now)",
        "select(table.id).where(table.lease_expires_at.is_not(None))",
    ),
    "ended ones too": (
        "table.status == UploadStatus.INSPECTING, table.lease_expires_at.is_(None)",
        "table.lease_expires_at.is_(None)",
    ),
    "held ones too": (
        "table.status == UploadStatus.INSPECTING, table.lease_expires_at.is_(None)",
        "table.status == UploadStatus.INSPECTING",
    ),
    "any tenant": ("and_(table.id == upload_id, table.tenant == tenant)", "and_(table.id == upload_id)"),
}
"""Each predicate that keeps an inspector, or a tenant, from what is not its own: what stands there, and without it."""


@pytest.mark.parametrize("fence", FENCES)
def test_a_fence_that_is_gone_is_noticed(sqlite_url: str, fence: str) -> None:
    with unsynced(sqlite_url) as database, changed(inspections, *FENCES[fence]), pytest.raises(AssertionError):
        run_state_machine_as_test(machine_on(database), settings=LONG)


def test_no_fence_is_forgotten_here() -> None:
    named = "".join({old for old, _ in FENCES.values()})
    written = Path(inspections.__file__).read_text()
    for token in (
        "table.attempt == attempt",
        "lease_expires_at.is_not(",
        "lease_expires_at.is_(",
        "lease_expires_at <",
    ):
        assert named.count(token) == written.count(token)
