"""A job's life on both databases: every edge, every fence, every race."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models import attempts, transitions
from models.database import Database
from models.errors import Code, Failure
from models.events import EngineEvent, MetricEvent, PhaseEvent, ProgressEvent, StatusEvent, StoredEvent
from models.statuses import TERMINAL, TRANSITIONS, JobStatus, Phase
from models.tables import Artifact, Checkpoint, Event, Job, Log
from tests.models.rows import ARTIFACT, ERROR, LEASE, REPORT, SPEC, at, claim, everything, job_in, submit

Change = Callable[[Session, str, int], Any]

CHANGES: dict[str, Change] = {
    "claim": lambda session, job_id, attempt: claim(session, seconds=9),
    "succeed": lambda session, job_id, attempt: transitions.succeed(
        session, job_id, attempt, REPORT, [ARTIFACT], at(9)
    ),
    "fail": lambda session, job_id, attempt: transitions.fail(session, job_id, attempt, ERROR, at(9)),
    "give back": lambda session, job_id, attempt: transitions.give_back(session, job_id, attempt, at(9)),
    "cancel": lambda session, job_id, attempt: transitions.cancel(session, "a", job_id, at(9)),
    "mark cancelled": lambda session, job_id, attempt: transitions.mark_cancelled(session, job_id, attempt, at(9)),
    "strike": lambda session, job_id, attempt: transitions.strike(session, job_id, attempt, ERROR, 3, at(9)),
    "last strike": lambda session, job_id, attempt: transitions.strike(session, job_id, attempt, ERROR, 1, at(9)),
    "sweep": lambda session, job_id, attempt: transitions.sweep(session, max_strikes=3, now=at(LEASE + 1)),
    "last sweep": lambda session, job_id, attempt: transitions.sweep(session, max_strikes=1, now=at(LEASE + 1)),
}
QUEUED, RUNNING, CANCELLING = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING
SUCCEEDED, FAILED, CANCELLED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED

LEADS: dict[tuple[JobStatus, str], JobStatus] = {
    (QUEUED, "claim"): RUNNING,
    (QUEUED, "cancel"): CANCELLED,
    (RUNNING, "succeed"): SUCCEEDED,
    (RUNNING, "fail"): FAILED,
    (RUNNING, "give back"): QUEUED,
    (RUNNING, "cancel"): CANCELLING,
    (RUNNING, "strike"): QUEUED,
    (RUNNING, "last strike"): FAILED,
    (RUNNING, "sweep"): QUEUED,
    (RUNNING, "last sweep"): FAILED,
    (CANCELLING, "mark cancelled"): CANCELLED,
    (CANCELLING, "strike"): CANCELLED,
    (CANCELLING, "last strike"): CANCELLED,
    (CANCELLING, "sweep"): CANCELLED,
    (CANCELLING, "last sweep"): CANCELLED,
}
"""Every change from every status; what is not here changes nothing."""

WORKER_WRITES: dict[str, Change] = {
    **{name: CHANGES[name] for name in ("succeed", "fail", "give back", "mark cancelled", "strike")},
    "beat": lambda session, job_id, attempt: attempts.beat(session, job_id, attempt, at(99), at(9)),
    "record": lambda session, job_id, attempt: attempts.record(
        session, job_id, attempt, [ProgressEvent(percent=9)], at(9)
    ),
    "append log": lambda session, job_id, attempt: attempts.append_log(session, job_id, attempt, "line\n"),
    "add artifact": lambda session, job_id, attempt: attempts.add_artifact(session, job_id, attempt, ARTIFACT),
    "add checkpoint": lambda session, job_id, attempt: attempts.add_checkpoint(
        session, job_id, attempt, key="k", step_index=0, sha256="c" * 64, size_bytes=3, now=at(9)
    ),
}


def get(session: Session, job_id: str) -> Job:
    return session.scalars(select(Job).where(Job.id == job_id).execution_options(populate_existing=True)).one()


def events(session: Session, job_id: str) -> list[StoredEvent]:
    rows = session.scalars(select(Event).where(Event.job_id == job_id).order_by(Event.id))
    return [StoredEvent(id=row.id, at=row.at, attempt=row.attempt, data=row.data) for row in rows]


def test_the_map_of_transitions_and_the_roads_agree() -> None:
    assert {(start, end) for start, ends in TRANSITIONS.items() for end in ends} == {
        (start, end) for (start, _), end in LEADS.items()
    }


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("start", JobStatus)
def test_a_change_leads_where_the_map_says_or_nowhere(session: Session, start: JobStatus, change: str) -> None:
    job_id = job_in(session, start)
    before = everything(session)
    count = get(session, job_id).event_count
    CHANGES[change](session, job_id, 1)
    end = LEADS.get((start, change))
    if end is None:
        assert everything(session) == before
        return
    job = get(session, job_id)
    assert job.status == end
    assert job.event_count == count + 1
    last = events(session, job_id)[-1]
    assert (last.id, last.at, last.attempt) == (job.event_count, job.changed_at, job.attempt)
    assert isinstance(last.data, StatusEvent)
    assert last.data.status is end
    assert (job.finished_at == job.changed_at) == (end in TERMINAL)
    assert (job.lease_expires_at is not None) == (end in attempts.HELD)
    assert (job.error is not None) == (end is FAILED)


@pytest.mark.parametrize("write", WORKER_WRITES)
@pytest.mark.parametrize("now_status", [QUEUED, RUNNING, CANCELLING])
def test_a_worker_that_lost_its_job_cannot_write(session: Session, write: str, now_status: JobStatus) -> None:
    job_id = job_in(session, RUNNING)
    assert transitions.sweep(session, max_strikes=3, now=at(LEASE + 1)) == [(job_id, QUEUED)]
    if now_status is not QUEUED:
        claimed = claim(session, worker="another", seconds=LEASE + 2)
        assert claimed is not None
        assert claimed.attempt == 2
    if now_status is CANCELLING:
        transitions.cancel(session, "a", job_id, at(LEASE + 3))
    before = everything(session)
    assert WORKER_WRITES[write](session, job_id, 1) in (None, False)
    assert everything(session) == before


@pytest.mark.parametrize("write", WORKER_WRITES)
@pytest.mark.parametrize("start", sorted(TERMINAL))
def test_nothing_is_written_to_a_job_that_ended(session: Session, write: str, start: JobStatus) -> None:
    job_id = job_in(session, start)
    before = everything(session)
    assert WORKER_WRITES[write](session, job_id, 1) in (None, False)
    assert everything(session) == before


def test_a_claim_takes_a_lease_and_keeps_the_first_start(session: Session) -> None:
    job_id = submit(session)
    first = claim(session, worker="w1", seconds=5)
    assert first is not None
    assert (first.worker_id, first.attempt, first.lease_expires_at) == ("w1", 1, at(5 + LEASE))
    assert transitions.give_back(session, job_id, 1, at(6))
    second = claim(session, worker="w2", seconds=7)
    assert second is not None
    assert (second.worker_id, second.attempt, second.strikes, second.started_at) == ("w2", 2, 0, at(5))


def test_a_claim_passes_over_jobs_for_another_device(session: Session) -> None:
    submit(session, device="cuda")
    job_id = submit(session, device="cpu", seconds=1)
    claimed = claim(session, device_class="cpu")
    assert claimed is not None
    assert claimed.id == job_id
    assert claim(session, device_class="cpu") is None


def test_a_beat_renews_the_lease_and_says_when_somebody_cancelled(session: Session) -> None:
    job_id = job_in(session, RUNNING)
    assert attempts.beat(session, job_id, 1, at(100), at(9)) is RUNNING
    assert transitions.sweep(session, max_strikes=3, now=at(LEASE + 1)) == []
    transitions.cancel(session, "a", job_id, at(10))
    assert attempts.beat(session, job_id, 1, at(100), at(11)) is CANCELLING


def test_strikes_are_used_up_and_giving_back_costs_none(session: Session) -> None:
    job_id = submit(session)
    outcomes: list[bool | JobStatus | None] = []
    for attempt in range(1, 7):
        assert claim(session) is not None
        if attempt % 2:
            outcomes.append(transitions.give_back(session, job_id, attempt, at(attempt)))
        else:
            outcomes.append(transitions.strike(session, job_id, attempt, ERROR, 3, at(attempt)))
    assert outcomes == [True, QUEUED, True, QUEUED, True, FAILED]
    job = get(session, job_id)
    assert (job.attempt, job.strikes) == (6, 3)
    assert job.error is not None
    assert job.error["code"] == Code.ENGINE_CRASHED


def test_a_sweep_says_who_was_lost_and_sweeping_again_changes_nothing(session: Session) -> None:
    job_id = job_in(session, RUNNING)
    assert transitions.sweep(session, max_strikes=1, now=at(LEASE)) == []
    assert transitions.sweep(session, max_strikes=1, now=at(LEASE + 1)) == [(job_id, FAILED)]
    before = everything(session)
    assert transitions.sweep(session, max_strikes=1, now=at(LEASE + 1)) == []
    assert everything(session) == before
    assert get(session, job_id).error == {
        "code": "worker_lost",
        "phase": None,
        "message": "Worker w stopped answering while it ran this job.",
        "where": None,
        "retryable": True,
        "hint": "Workers stopped while they ran this job; clone it once workers are healthy.",
    }


def test_cancelling_answers_with_the_status_the_job_has_now(session: Session) -> None:
    assert transitions.cancel(session, "a", "job_none", at(9)) is None
    for status, answer in ((QUEUED, CANCELLED), (RUNNING, CANCELLING), (CANCELLING, CANCELLING), (FAILED, FAILED)):
        job_id = job_in(session, status)
        assert transitions.cancel(session, "another tenant", job_id, at(9)) is None
        assert transitions.cancel(session, "a", job_id, at(9)) is answer
        assert transitions.cancel(session, "a", job_id, at(9)) is answer


def test_success_brings_its_report_and_replaces_partial_artifacts(session: Session) -> None:
    job_id = job_in(session, RUNNING)
    partial = attempts.PublishedArtifact("after-0.pt2", "pt2", "application/zip", 3, "b" * 64, partial=True)
    assert attempts.add_artifact(session, job_id, 1, partial)
    assert attempts.add_artifact(session, job_id, 1, partial)
    assert transitions.succeed(session, job_id, 1, REPORT, [ARTIFACT], at(9))
    assert get(session, job_id).report == REPORT.model_dump(mode="json")
    assert [row.name for row in session.scalars(select(Artifact))] == [ARTIFACT.name]


def test_events_count_on_and_the_job_follows_them(session: Session) -> None:
    job_id = job_in(session, RUNNING)
    batch: list[EngineEvent] = [
        PhaseEvent(phase=Phase.FINETUNING, step_index=1, step_count=2),
        ProgressEvent(percent=40, epoch=1, epochs=5, eta_seconds=7.5),
        MetricEvent(name="loss", value=float("nan"), split="train"),
    ]
    assert attempts.record(session, job_id, 1, batch, at(3))
    assert attempts.record(session, job_id, 1, [ProgressEvent(percent=41)], at(4))
    job = get(session, job_id)
    assert (job.phase, job.changed_at, job.event_count) == ("finetuning", at(4), 6)
    assert job.progress == {
        "percent": 41.0,
        "step_index": 1,
        "step_count": 2,
        "epoch": None,
        "epochs": None,
        "eta_seconds": None,
    }
    stored = events(session, job_id)
    assert [event.id for event in stored] == [1, 2, 3, 4, 5, 6]
    assert stored[2].data == batch[0]
    assert stored[4].data == MetricEvent(name="loss", value=None, split="train")


def test_a_log_keeps_its_order_and_survives_bytes_that_databases_do_not_store(session: Session) -> None:
    job_id = job_in(session, RUNNING)
    for text in ("first\n", "nul \0 and more\n"):
        assert attempts.append_log(session, job_id, 1, text)
    assert [(row.id, row.text) for row in session.scalars(select(Log).order_by(Log.id))] == [
        (1, "first\n"),
        (2, "nul \ufffd and more\n"),
    ]


def test_a_checkpoint_serves_every_job_of_its_tenant_and_no_other(session: Session) -> None:
    job_id = job_in(session, RUNNING)
    for key, step in (("second", 1), ("first", 0), ("first", 0)):
        assert attempts.add_checkpoint(
            session, job_id, 1, key=key, step_index=step, sha256="c" * 64, size_bytes=3, now=at(9)
        )
    found = attempts.checkpoints(session, "a", ["first", "second", "third"])
    assert [checkpoint.key for checkpoint in found] == ["first", "second"]
    assert attempts.checkpoints(session, "b", ["first", "second"]) == []
    assert session.scalar(select(func.count()).select_from(Checkpoint)) == 2


def test_the_end_of_a_step_takes_the_place_of_the_states_inside_it(session: Session) -> None:
    job_id = job_in(session, RUNNING)
    for key, sha256, supersedes in (("inside", "c", None), ("inside", "d", None), ("end", "e", "inside")):
        found = attempts.checkpoints(session, "a", ["inside", "end"])
        assert len(found) <= 1
        assert attempts.add_checkpoint(
            session,
            job_id,
            1,
            key=key,
            step_index=1,
            sha256=sha256 * 64,
            size_bytes=3,
            supersedes=supersedes,
            now=at(9),
        )
    assert [row.sha256[0] for row in attempts.checkpoints(session, "a", ["inside", "end"])] == ["e"]


@pytest.mark.parametrize("status", JobStatus)
def test_a_job_is_deleted_with_all_it_has_once_it_ended(session: Session, status: JobStatus) -> None:
    job_id = job_in(session, status)
    assert not transitions.delete_job(session, "another tenant", job_id)
    if status not in TERMINAL:
        with pytest.raises(Failure, match=f"The job is {status}. Cancel it, or wait for its end") as refused:
            transitions.delete_job(session, "a", job_id)
        assert refused.value.code is Code.IN_USE
        return
    assert transitions.delete_job(session, "a", job_id)
    assert not transitions.delete_job(session, "a", job_id)
    rows = everything(session)
    assert {name for name, found in rows.items() if found} == {"networks"}


def test_a_job_for_a_network_that_is_gone_is_refused(database: Database) -> None:
    with pytest.raises(Failure, match="was deleted meanwhile") as refused, database.transaction() as session:
        transitions.submit(
            session,
            tenant="a",
            name=None,
            network_id="net_gone",
            dataset_id=None,
            spec=SPEC,
            resolved_spec=SPEC,
            device="auto",
            now=at(0),
        )
    assert refused.value.code is Code.NOT_FOUND


# Races. Each is run until luck is no explanation.

ROUNDS = 20


def together(*parts: Callable[[], Any]) -> list[Any]:
    """Run the parts at the same time; their answers in order."""
    gate = threading.Barrier(len(parts))

    def run(part: Callable[[], Any]) -> Any:
        gate.wait()
        return part()

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, parts))


def in_transaction(database: Database, work: Callable[[Session], Any]) -> Callable[[], Any]:
    def part() -> Any:
        with database.transaction() as session:
            return work(session)

    return part


def test_of_workers_that_claim_together_exactly_one_wins_each_job(database: Database) -> None:
    for _ in range(ROUNDS // 4):
        with database.transaction() as session:
            jobs = {submit(session, tenant) for tenant in ("a", "a", "b")}
        claims = together(*[in_transaction(database, claim) for _ in range(6)])
        won = [job.id for job in claims if job is not None]
        assert sorted(won) == sorted(jobs)
        with database.transaction() as session:
            assert all(transitions.fail(session, job_id, 1, ERROR, at(9)) for job_id in won)


def test_of_cancel_and_success_exactly_one_wins(database: Database) -> None:
    winners = set()
    for _ in range(ROUNDS):
        with database.transaction() as session:
            job_id = job_in(session, RUNNING)
        answer, succeeded = together(
            in_transaction(database, lambda session, job_id=job_id: transitions.cancel(session, "a", job_id, at(9))),  # type: ignore[misc]
            in_transaction(
                database,
                lambda session, job_id=job_id: transitions.succeed(session, job_id, 1, REPORT, [ARTIFACT], at(9)),  # type: ignore[misc]
            ),
        )
        with database.transaction() as session:
            job = get(session, job_id)
            assert (answer, succeeded, job.status) in ((CANCELLING, False, CANCELLING), (SUCCEEDED, True, SUCCEEDED))
            assert (job.report is not None) is succeeded
            winners.add(job.status)
            transitions.mark_cancelled(session, job_id, 1, at(10))
    assert winners


def test_of_a_sweep_and_a_late_beat_exactly_one_wins(database: Database) -> None:
    for _ in range(ROUNDS):
        with database.transaction() as session:
            job_id = job_in(session, RUNNING)
        swept, beaten = together(
            in_transaction(database, lambda session: transitions.sweep(session, max_strikes=1, now=at(LEASE + 1))),
            in_transaction(
                database,
                lambda session, job_id=job_id: attempts.beat(session, job_id, 1, at(99), at(LEASE + 1)),  # type: ignore[misc]
            ),
        )
        assert (swept, beaten) in (([], RUNNING), ([(job_id, FAILED)], None))
        with database.transaction() as session:
            transitions.fail(session, job_id, 1, ERROR, at(LEASE + 2))


def test_two_sweeps_at_once_strike_once(database: Database) -> None:
    for _ in range(ROUNDS // 2):
        with database.transaction() as session:
            job_id = job_in(session, RUNNING)
        sweep = in_transaction(database, lambda session: transitions.sweep(session, max_strikes=9, now=at(LEASE + 1)))
        swept = together(sweep, sweep)
        assert sorted(swept) == [[], [(job_id, QUEUED)]]
        with database.transaction() as session:
            assert get(session, job_id).strikes == 1
            transitions.cancel(session, "a", job_id, at(LEASE + 2))
