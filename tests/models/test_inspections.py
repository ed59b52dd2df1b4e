"""An upload's life on both databases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from models import inspections, transitions
from models.blobs import Blob
from models.database import Database
from models.errors import Code, Failure
from models.inspection import DatasetInspection, NetworkInspection
from models.inspections import UploadTable
from models.statuses import UploadStatus
from models.tables import Dataset, Network
from tests.models.rows import ERROR, LEASE, SPEC, at, everything
from tests.models.test_rules import ARRAYS, RESNET
from tests.models.test_transitions import in_transaction, together

INSPECTIONS: dict[UploadTable, NetworkInspection | DatasetInspection] = {Network: RESNET, Dataset: ARRAYS}
WRITES: dict[str, Callable[[Session, UploadTable, str, int], Any]] = {
    "beat": lambda session, table, upload_id, attempt: inspections.beat_upload(
        session, table, upload_id, attempt, at(99)
    ),
    "accept": lambda session, table, upload_id, attempt: inspections.accept_upload(
        session, table, upload_id, attempt, INSPECTIONS[table]
    ),
    "reject": lambda session, table, upload_id, attempt: inspections.reject_upload(
        session, table, upload_id, attempt, ERROR
    ),
    "give back": lambda session, table, upload_id, attempt: inspections.give_back_upload(
        session, table, upload_id, attempt
    ),
    "strike": lambda session, table, upload_id, attempt: inspections.strike_upload(
        session, table, upload_id, attempt, ERROR, 3
    ),
}


def add(session: Session, table: UploadTable, seconds: float = 0) -> str:
    blob = Blob("a" * 64, 3)
    return inspections.add_upload(session, table, tenant="a", name="file", blob=blob, now=at(seconds)).id


def claim(session: Session) -> tuple[str, int] | None:
    row = inspections.claim_upload(session, lease_until=at(LEASE))
    return None if row is None else (row.id, row.attempt)


def get(session: Session, table: UploadTable, upload_id: str) -> Network | Dataset:
    return cast("Network | Dataset", session.scalars(select(table).where(table.id == upload_id)).one())


def test_uploads_are_inspected_oldest_first_and_once(session: Session) -> None:
    network, dataset, last = add(session, Network, 1), add(session, Dataset, 2), add(session, Network, 3)
    assert inspections.waiting_count(session) == 3
    assert [claim(session) for _ in range(4)] == [(network, 1), (dataset, 1), (last, 1), None]
    assert inspections.waiting_count(session) == 0


@pytest.mark.parametrize("table", [Network, Dataset])
def test_an_inspection_makes_an_upload_ready_or_rejected(session: Session, table: UploadTable) -> None:
    good, bad = add(session, table, 1), add(session, table, 2)
    assert (claim(session), claim(session)) == ((good, 1), (bad, 1))
    assert WRITES["accept"](session, table, good, 1)
    assert WRITES["reject"](session, table, bad, 1)
    ready, rejected = get(session, table, good), get(session, table, bad)
    assert (ready.status, ready.inspection) == ("ready", INSPECTIONS[table].model_dump(mode="json"))
    assert (rejected.status, rejected.error) == ("rejected", ERROR.model_dump(mode="json"))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("table", [Network, Dataset])
@pytest.mark.parametrize("then", ["nothing", "claimed again", "accepted"])
def test_an_inspector_that_lost_its_lease_cannot_write(
    session: Session, write: str, table: UploadTable, then: str
) -> None:
    upload_id = add(session, table)
    claim(session)
    swept = inspections.sweep_uploads(session, max_strikes=3, now=at(LEASE + 1))
    assert swept == [(upload_id, UploadStatus.INSPECTING)]
    if then != "nothing":
        assert claim(session) == (upload_id, 2)
    if then == "accepted":
        assert WRITES["accept"](session, table, upload_id, 2)
    before = everything(session)
    assert WRITES[write](session, table, upload_id, 1) in (None, False)
    assert everything(session) == before


def test_an_inspection_that_keeps_dying_is_rejected(session: Session) -> None:
    upload_id = add(session, Network)
    outcomes = []
    for attempt in (1, 2, 3):
        assert claim(session) == (upload_id, attempt)
        outcomes.append(inspections.strike_upload(session, Network, upload_id, attempt, ERROR, 3))
    assert outcomes == ["inspecting", "inspecting", "rejected"]
    assert get(session, Network, upload_id).error == ERROR.model_dump(mode="json")


def test_sweeping_uploads_again_changes_nothing(session: Session) -> None:
    upload_id = add(session, Dataset)
    claim(session)
    assert inspections.sweep_uploads(session, max_strikes=1, now=at(LEASE)) == []
    swept = inspections.sweep_uploads(session, max_strikes=1, now=at(LEASE + 1))
    assert swept == [(upload_id, UploadStatus.REJECTED)]
    assert inspections.sweep_uploads(session, max_strikes=1, now=at(LEASE + 1)) == []
    error = get(session, Dataset, upload_id).error
    assert error is not None
    assert error["message"] == "The worker stopped answering while it inspected this file."


def test_an_inspection_given_back_costs_no_strike(session: Session) -> None:
    upload_id = add(session, Network)
    claim(session)
    assert inspections.give_back_upload(session, Network, upload_id, 1)
    assert claim(session) == (upload_id, 2)


def submit(session: Session, network_id: str, dataset_id: str | None) -> None:
    transitions.submit(
        session,
        tenant="a",
        name=None,
        network_id=network_id,
        dataset_id=dataset_id,
        spec=SPEC,
        resolved_spec=SPEC,
        device="auto",
        now=at(9),
    )


def test_an_upload_that_a_job_uses_is_not_deleted(session: Session) -> None:
    network, dataset, unused = add(session, Network), add(session, Dataset), add(session, Dataset)
    submit(session, network, dataset)
    for table, upload_id in ((Network, network), (Dataset, dataset)):
        with pytest.raises(Failure, match=r"A job uses it. Delete that job first, once it has ended.") as refused:
            inspections.delete_upload(session, table, "a", upload_id)
        assert refused.value.code is Code.IN_USE
        assert not inspections.delete_upload(session, table, "b", upload_id)
    assert inspections.delete_upload(session, Dataset, "a", unused)
    assert not inspections.delete_upload(session, Dataset, "a", unused)


def test_of_a_submit_and_a_delete_at_once_exactly_one_wins(database: Database) -> None:
    def outcome(part: Callable[[], Any]) -> Callable[[], Any]:
        def caught() -> Any:
            try:
                return part()
            except Failure as failure:
                return failure.code

        return caught

    for _ in range(10):
        with database.transaction() as session:
            network = add(session, Network)
        submitted, deleted = together(
            outcome(in_transaction(database, lambda session, network=network: submit(session, network, None))),  # type: ignore[misc]
            outcome(
                in_transaction(
                    database,
                    lambda session, network=network: inspections.delete_upload(session, Network, "a", network),  # type: ignore[misc]
                )
            ),
        )
        assert (submitted, deleted) in ((None, Code.IN_USE), (Code.NOT_FOUND, True))


def test_of_inspectors_that_claim_together_exactly_one_wins_each_upload(database: Database) -> None:
    with database.transaction() as session:
        uploads = [add(session, table) for table in (Network, Network, Dataset)]
    answers = together(*[in_transaction(database, claim) for _ in range(8)])
    won = [upload_id for upload_id, _ in filter(None, answers)]
    assert len(set(won)) == len(won)
    while len(won) < len(uploads):
        with database.transaction() as session:
            answer = claim(session)
        assert answer is not None
        won.append(answer[0])
    assert sorted(won) == sorted(uploads)
