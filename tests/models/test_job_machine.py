"""Any order of events at all, against a model small enough to be believed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
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

from models import attempts, transitions
from models.database import Database
from models.events import ProgressEvent
from models.statuses import TERMINAL, JobStatus
from models.tables import Base, Event, Job
from tests.models.machines import LONG, QUICK, Vanished, changed, unsynced
from tests.models.rows import ARTIFACT, ERROR, LEASE, REPORT, at, claim, submit

MAX_STRIKES = 3
Token = tuple[str, int]


@dataclass
class Expected:
    """What a job must look like."""

    tenant: str
    status: JobStatus = JobStatus.QUEUED
    attempt: int = 0
    strikes: int = 0
    lease: float = 0
    events: int = 1


class JobMachine(RuleBasedStateMachine):
    """Clients, workers that may be long dead, and the sweep. A token is (job, attempt), as a worker remembers it."""

    database: ClassVar[Database]
    tokens = Bundle("tokens")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.expected: dict[str, Expected] = {}
        with self.database.transaction() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())

    @rule(target=jobs, tenant=st.sampled_from("ab"))
    def submit(self, tenant: str) -> str:
        with self.database.transaction() as session:
            job_id = submit(session, tenant, seconds=self.clock)
        self.expected[job_id] = Expected(tenant)
        return job_id

    @rule(target=tokens)
    def claim(self) -> Any:
        with self.database.transaction() as session:
            job = claim(session, seconds=self.clock)
        waiting = [job_id for job_id, job in self.expected.items() if job.status is JobStatus.QUEUED]
        if job is None:
            assert not waiting
            return multiple()
        assert job.id in waiting
        expected = self.expected[job.id]
        expected.attempt += 1
        expected.lease = self.clock + LEASE
        self._moves(job.id, JobStatus.RUNNING)
        return (job.id, expected.attempt)

    @rule(target=tokens, cancelled=st.booleans())
    def another_takes_over(self, cancelled: bool) -> Any:
        """The usual way to a token that is stale."""
        self.clock += LEASE + 1
        self.sweep()
        token = self.claim()
        if cancelled and isinstance(token, tuple):
            self.cancel(token[0], True)
        return token

    @rule()
    def the_dead_wake(self) -> None:
        """Nothing that an attempt says after its time does anything."""
        for job_id, job in self.expected.items():
            for attempt in range(1, job.attempt + 1):
                if not self._holds((job_id, attempt)):
                    self._says_all_it_can((job_id, attempt))

    def _says_all_it_can(self, token: Token) -> None:
        moment = at(self.clock)
        with self.database.transaction() as session:
            for answer in (
                attempts.beat(session, *token, at(self.clock + LEASE), moment),
                attempts.record(session, *token, [ProgressEvent(percent=1)], moment),
                attempts.append_log(session, *token, "a line\n"),
                attempts.add_artifact(session, *token, ARTIFACT),
                transitions.succeed(session, *token, REPORT, [ARTIFACT], moment),
                transitions.fail(session, *token, ERROR, moment),
                transitions.give_back(session, *token, moment),
                transitions.mark_cancelled(session, *token, moment),
                transitions.strike(session, *token, ERROR, MAX_STRIKES, moment),
            ):
                assert not answer

    @rule(seconds=st.sampled_from([1, LEASE + 1]))
    def time_passes(self, seconds: float) -> None:
        self.clock += seconds

    @rule(token=tokens)
    def beat(self, token: Token) -> None:
        with self.database.transaction() as session:
            answer = attempts.beat(session, *token, at(self.clock + LEASE), at(self.clock))
        assert answer == (self.expected[token[0]].status if self._holds(token) else None)
        if answer is not None:
            self.expected[token[0]].lease = self.clock + LEASE

    @rule(token=tokens, count=st.integers(0, 3))
    def record(self, token: Token, count: int) -> None:
        with self.database.transaction() as session:
            answer = attempts.record(session, *token, [ProgressEvent(percent=1)] * count, at(self.clock))
        assert answer is self._holds(token)
        self.expected[token[0]].events += count * answer

    @rule(token=tokens, what=st.sampled_from(["log", "artifact", "checkpoint"]))
    def write(self, token: Token, what: str) -> None:
        with self.database.transaction() as session:
            match what:
                case "log":
                    answer = attempts.append_log(session, *token, "a line\n")
                case "artifact":
                    answer = attempts.add_artifact(session, *token, ARTIFACT)
                case _:
                    answer = attempts.add_checkpoint(
                        session, *token, key="k", step_index=0, sha256="c" * 64, size_bytes=3, now=at(self.clock)
                    )
        assert answer is self._holds(token)

    @rule(token=tokens)
    def database_vanishes_before_the_commit(self, token: Token) -> None:
        """Whatever this attempt was about to say, nothing of it happened."""
        with suppress(Vanished), self.database.transaction() as session:
            transitions.succeed(session, *token, REPORT, [ARTIFACT], at(self.clock))
            raise Vanished

    @rule()
    def database_gap(self) -> None:
        """Longer than any lease. Workers that live renew theirs before anybody sweeps, and nothing is lost."""
        self.clock += 10 * LEASE
        for job_id, job in self.expected.items():
            if job.status in attempts.HELD:
                self.beat((job_id, job.attempt))
        with self.database.transaction() as session:
            assert transitions.sweep(session, max_strikes=MAX_STRIKES, now=at(self.clock)) == []

    @rule(token=tokens, end=st.sampled_from(["succeed", "fail", "give back", "mark cancelled"]))
    def end(self, token: Token, end: str) -> None:
        moment = at(self.clock)
        with self.database.transaction() as session:
            match end:
                case "succeed":
                    answer = transitions.succeed(session, *token, REPORT, [ARTIFACT], moment)
                case "fail":
                    answer = transitions.fail(session, *token, ERROR, moment)
                case "give back":
                    answer = transitions.give_back(session, *token, moment)
                case _:
                    answer = transitions.mark_cancelled(session, *token, moment)
        starts, leads = {
            "succeed": (JobStatus.RUNNING, JobStatus.SUCCEEDED),
            "fail": (JobStatus.RUNNING, JobStatus.FAILED),
            "give back": (JobStatus.RUNNING, JobStatus.QUEUED),
            "mark cancelled": (JobStatus.CANCELLING, JobStatus.CANCELLED),
        }[end]
        assert answer is (self._holds(token) and self.expected[token[0]].status is starts)
        if answer:
            self._moves(token[0], leads)

    @rule(token=tokens)
    def strike(self, token: Token) -> None:
        with self.database.transaction() as session:
            answer = transitions.strike(session, *token, ERROR, MAX_STRIKES, at(self.clock))
        assert answer == (self._struck(token[0]) if self._holds(token) else None)

    @rule(job_id=jobs, right=st.booleans())
    def cancel(self, job_id: str, right: bool) -> None:
        expected = self.expected[job_id]
        with self.database.transaction() as session:
            answer = transitions.cancel(session, expected.tenant if right else "z", job_id, at(self.clock))
        if not right:
            assert answer is None
            return
        if expected.status is JobStatus.QUEUED:
            self._moves(job_id, JobStatus.CANCELLED)
        elif expected.status is JobStatus.RUNNING:
            self._moves(job_id, JobStatus.CANCELLING)
        assert answer is expected.status

    @rule()
    def sweep(self) -> None:
        with self.database.transaction() as session:
            changed = transitions.sweep(session, max_strikes=MAX_STRIKES, now=at(self.clock))
        lapsed = [
            job_id for job_id, job in self.expected.items() if job.status in attempts.HELD and job.lease < self.clock
        ]
        assert dict(changed) == {job_id: self._struck(job_id) for job_id in lapsed}

    @invariant()
    def the_database_says_what_the_model_says(self) -> None:
        with self.database.read() as session:
            rows = session.scalars(select(Job)).all()
            numbers: dict[str, list[int]] = {row.id: [] for row in rows}
            for job_id, number in session.execute(select(Event.job_id, Event.id).order_by(Event.id)).tuples():
                numbers[job_id].append(number)
        assert {row.id for row in rows} == set(self.expected)
        for row in rows:
            job = self.expected[row.id]
            assert (row.status, row.attempt, row.strikes, row.tenant) == (
                job.status,
                job.attempt,
                job.strikes,
                job.tenant,
            )
            assert numbers[row.id] == list(range(1, job.events + 1))
            assert (row.lease_expires_at is not None) == (job.status in attempts.HELD)
            assert (row.report is not None) == (job.status is JobStatus.SUCCEEDED)

    def teardown(self) -> None:
        """Every job has a way to an end, whatever happened to it: the workers die, and new ones fail as well."""
        for _ in range(MAX_STRIKES + 1):
            self.time_passes(LEASE + 1)
            self.sweep()
            while any(job.status is JobStatus.QUEUED for job in self.expected.values()):
                self.claim()
        assert all(job.status in TERMINAL for job in self.expected.values())

    def _holds(self, token: Token) -> bool:
        expected = self.expected[token[0]]
        return expected.attempt == token[1] and expected.status in attempts.HELD

    def _struck(self, job_id: str) -> JobStatus:
        expected = self.expected[job_id]
        if expected.status is JobStatus.CANCELLING:
            return self._moves(job_id, JobStatus.CANCELLED)
        expected.strikes += 1
        return self._moves(job_id, JobStatus.FAILED if expected.strikes == MAX_STRIKES else JobStatus.QUEUED)

    def _moves(self, job_id: str, status: JobStatus) -> JobStatus:
        expected = self.expected[job_id]
        assert expected.status not in TERMINAL
        expected.status = status
        expected.events += 1
        return status


def machine_on(database: Database) -> type[JobMachine]:
    return type("Machine", (JobMachine,), {"database": database})


def test_no_order_of_events_breaks_a_job(database: Database) -> None:
    run_state_machine_as_test(machine_on(database), settings=QUICK)


FENCES = [
    (transitions, "Job.attempt == attempt, Job.status == JobStatus.RUNNING", "Job.status == JobStatus.RUNNING"),
    (transitions, "Job.attempt == attempt, Job.status == JobStatus.RUNNING", "Job.attempt == attempt"),
    (transitions, "Job.attempt == attempt, Job.status == JobStatus.CANCELLING", "Job.status == JobStatus.CANCELLING"),
    (transitions, "Job.attempt == attempt, Job.status == JobStatus.CANCELLING", "Job.attempt == attempt"),
    (transitions, "Job.attempt == attempt, Job.status.in_(HELD)", "Job.status.in_(HELD)"),
    (transitions, "Job.attempt == attempt, Job.status.in_(HELD)", "Job.attempt == attempt"),
    (transitions, "Job.status.in_(HELD), Job.lease_expires_at < now", "Job.status.in_(HELD)"),
    (transitions, "Job.id == job_id, Job.tenant == tenant)\n    was_queued", "Job.id == job_id)\n    was_queued"),
    (transitions, "mine, Job.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))", "mine"),
    (attempts, "Job.attempt == attempt, Job.status.in_(HELD)", "Job.status.in_(HELD)"),
    (attempts, "Job.attempt == attempt, Job.status.in_(HELD)", "Job.attempt == attempt"),
    (attempts, "if _lock(session, job_id, attempt) is None:\n        return False\n    last =", "last ="),
    (attempts, "if _lock(session, job_id, attempt) is None:\n        return False\n    upsert", "upsert"),
]
"""Each predicate that keeps a worker, or a tenant, from what is not its own: what stands there, and without it."""


@pytest.mark.parametrize(("module", "old", "new"), FENCES, ids=lambda value: getattr(value, "__name__", None))
def test_a_fence_that_is_gone_is_noticed(sqlite_url: str, module: ModuleType, old: str, new: str) -> None:
    with unsynced(sqlite_url) as database, changed(module, old, new), pytest.raises(AssertionError):
        run_state_machine_as_test(machine_on(database), settings=LONG)


def test_no_fence_is_forgotten_here() -> None:
    named = "".join(old for _, old, _ in {fence[:2]: fence for fence in FENCES}.values())
    written = "".join(Path(module.__file__ or "").read_text() for module in (transitions, attempts))
    assert named.count("Job.attempt == attempt") == written.count("Job.attempt == attempt")
    assert named.count("_lock(") == written.count("if _lock(")
