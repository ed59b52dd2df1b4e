"""Messages to webhooks, on a clock that the test moves."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from models import retention, transitions, webhooks
from models.database import Database
from models.spec import Webhook
from models.statuses import TERMINAL, JobStatus
from models.tables import Job, WebhookMessage, dump
from models.webhook_views import AttemptView
from models.webhooks import JITTER, SCHEDULE
from tests.models.rows import LEASE, SPEC, at, job_in, message
from tests.models.test_transitions import together

DAYS = timedelta(hours=75, minutes=35, seconds=5)


def attempt(moment: datetime, status_code: int | None = 500) -> AttemptView:
    delivered = status_code is not None and 200 <= status_code < 300
    return AttemptView(at=moment, status_code=status_code, problem=None if delivered else "no", seconds=0.1)


def claim(session: Session, moment: datetime) -> WebhookMessage | None:
    return webhooks.claim(session, lease_until=moment + timedelta(seconds=LEASE), now=moment)


def send(session: Session, moment: datetime, status_code: int | None = 500, jitter: float = 0) -> WebhookMessage:
    claimed = claim(session, moment)
    assert claimed is not None
    settled = webhooks.settle(session, claimed, attempt(moment, status_code), now=moment, jitter=lambda: jitter)
    assert settled is not None
    return settled


def status_of(session: Session, row: WebhookMessage) -> str:
    session.refresh(row)
    return row.status


@pytest.mark.parametrize("status", JobStatus)
def test_every_end_of_a_job_and_nothing_else_writes_one_message(session: Session, status: JobStatus) -> None:
    asking = SPEC.model_copy(update={"webhook": Webhook(url="https://hooks.example/x"), "metadata": {"team": "edge"}})
    job_id = job_in(session, status, asking)
    rows = session.scalars(select(WebhookMessage)).all()
    if status not in TERMINAL:
        assert rows == []
        return
    [row] = rows
    body = json.loads(row.body)
    assert body["type"] == f"job.{status}"
    assert body["data"]["id"] == row.job_id == job_id
    assert (body["data"]["status"], body["data"]["metadata"]) == (status, {"team": "edge"})
    assert (body["data"]["error"] is None) == (status is not JobStatus.FAILED)
    assert datetime.fromisoformat(body["timestamp"]) == session.get_one(Job, job_id).finished_at
    assert (row.status, row.next_attempt_at) == ("pending", row.created_at)


def test_a_job_without_a_webhook_writes_none(session: Session) -> None:
    job_in(session, JobStatus.SUCCEEDED)
    assert session.scalar(select(func.count()).select_from(WebhookMessage)) == 0


def test_an_end_that_is_rolled_back_is_told_to_nobody(database: Database) -> None:
    def end_and_fail() -> None:
        with database.transaction() as session:
            message(session)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        end_and_fail()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(WebhookMessage)) == 0


def test_a_receiver_that_is_away_for_three_days_is_tried_by_the_schedule_then_disabled(session: Session) -> None:
    row = message(session)
    assert sum(SCHEDULE, timedelta()) == DAYS
    tried = []
    for number in range(1, len(SCHEDULE) + 1):
        due = row.next_attempt_at
        assert due is not None
        assert claim(session, due - timedelta(milliseconds=1)) is None
        tried.append(due - at(0))
        row = send(session, due)
        assert row.failures == number
    assert tried == [sum(SCHEDULE[: number + 1], timedelta()) for number in range(len(SCHEDULE))]
    assert (row.status, row.disabled_at, row.ended_at) == ("failed", at(0) + DAYS, at(0) + DAYS)
    assert len(row.attempts) == 10
    assert claim(session, at(10**9)) is None
    later = message(session, seconds=10**6)
    assert (later.status, later.next_attempt_at) == ("disabled", None)
    assert webhooks.due_count(session, at(10**9)) == 0
    reason = webhooks.disabled_by(session, row.endpoint)
    assert reason is not None
    assert reason.id == row.id


def test_attempts_come_a_little_late_and_never_early(session: Session) -> None:
    message(session)
    row = send(session, at(0), jitter=1.0)
    assert row.next_attempt_at == at(5 * (1 + JITTER))


@pytest.mark.parametrize(("asked", "waited"), [(60, 60), (1, 5), (-9, 5), (10**7, 86400)])
def test_a_receiver_may_ask_for_more_time(session: Session, asked: int, waited: int) -> None:
    message(session)
    claimed = claim(session, at(0))
    assert claimed is not None
    later = timedelta(seconds=asked)
    row = webhooks.settle(session, claimed, attempt(at(0), 429), now=at(0), retry_after=later, jitter=lambda: 0.0)
    assert row is not None
    assert row.next_attempt_at == at(waited)


def test_gone_disables_at_once_what_waits_for_the_same_url_of_the_same_tenant(session: Session) -> None:
    first, second = message(session), message(session)
    others = [message(session, "b"), message(session, url="https://hooks.example/other")]
    gone = send(session, at(0), 410)
    assert gone.id == first.id
    assert (gone.status, gone.disabled_at) == ("failed", at(0))
    assert status_of(session, second) == "disabled"
    assert [status_of(session, other) for other in others] == ["pending", "pending"]


def one_attempt_left(session: Session) -> tuple[WebhookMessage, datetime]:
    """A message that nobody took but for its last attempt, and when that is."""
    row = message(session)
    for _ in SCHEDULE[:-1]:
        assert row.next_attempt_at is not None
        row = send(session, row.next_attempt_at)
    assert row.next_attempt_at is not None
    return row, row.next_attempt_at


def test_an_endpoint_that_took_another_message_meanwhile_stays_in_use(session: Session) -> None:
    row, final = one_attempt_left(session)
    taken = message(session, seconds=(final - at(0)).total_seconds() - 60)
    assert send(session, final - timedelta(seconds=60), 200).id == taken.id
    given_up = send(session, final)
    assert (given_up.id, given_up.status, given_up.disabled_at) == (row.id, "failed", None)
    assert message(session, seconds=10**6).status == "pending"


def test_it_stays_in_use_when_what_it_took_is_deleted(session: Session) -> None:
    row, final = one_attempt_left(session)
    taken = message(session, seconds=(final - at(0)).total_seconds() - 60)
    send(session, final - timedelta(seconds=60), 200)
    assert transitions.delete_job(session, "a", taken.job_id)
    assert retention.expire_endpoints(session, at(10**9)) == 0
    assert send(session, final).disabled_at is None
    assert transitions.delete_job(session, "a", row.job_id)
    assert retention.expire_endpoints(session, final - timedelta(seconds=60)) == 0
    assert retention.expire_endpoints(session, final) == 1


def test_sending_again_is_a_new_schedule_under_the_same_id_and_enables_the_url(session: Session) -> None:
    first = message(session)
    assert send(session, at(0), 410).disabled_at == at(0)
    held_back = message(session, seconds=5)
    assert webhooks.redeliver(session, "b", first.job_id, at(10)) is None
    again = webhooks.redeliver(session, "a", held_back.job_id, at(10))
    assert again is not None
    assert (again.id, again.status, again.failures) == (held_back.id, "pending", 0)
    assert webhooks.disabled_by(session, first.endpoint) is None
    assert send(session, at(10), 204).status == "delivered"
    once_more = webhooks.redeliver(session, "a", held_back.job_id, at(20))
    assert once_more is not None
    assert send(session, at(20)).next_attempt_at == at(25)
    assert len(session.get_one(WebhookMessage, held_back.id).attempts) == 2


def test_what_is_being_sent_keeps_its_place_when_it_is_asked_for_again(session: Session) -> None:
    for _ in range(3):
        message(session)
    sending = [claim(session, at(0)), claim(session, at(0))]
    for row in sending:
        assert row is not None
        session.expunge(row)
        again = webhooks.redeliver(session, "a", row.job_id, at(1))
        assert again is not None
        assert again.next_attempt_at == again.lease_expires_at == at(LEASE)
        assert webhooks.settle(session, row, attempt(at(1), 500), now=at(1)) is None
    assert claim(session, at(LEASE - 1)) is None
    assert claim(session, at(LEASE)) is not None


def test_a_message_that_is_postponed_has_no_attempt_more(session: Session) -> None:
    message(session)
    claimed = claim(session, at(0))
    assert claimed is not None
    webhooks.postpone(session, claimed, at(30))
    assert claim(session, at(29)) is None
    row = claim(session, at(30))
    assert row is not None
    assert (row.failures, row.attempts) == (0, [])


def test_two_that_disabled_one_url_are_sent_again_together(database: Database) -> None:
    with database.transaction() as session:
        job_ids = [message(session).job_id for _ in range(2)]

    def again(job_id: str) -> None:
        with database.transaction() as session:
            assert webhooks.redeliver(session, "a", job_id, at(1)) is not None

    for _ in range(10):
        with database.transaction() as session:
            session.execute(update(WebhookMessage).values(disabled_at=at(0)))
        together(*[partial(again, job_id) for job_id in job_ids])


def test_who_dies_while_sending_has_it_sent_again_and_may_write_no_more(session: Session) -> None:
    message(session)
    dead = claim(session, at(0))
    assert dead is not None
    token = dead.token
    session.expunge(dead)
    assert claim(session, at(LEASE - 1)) is None
    alive = claim(session, at(LEASE))
    assert alive is not None
    assert (alive.id, alive.token, alive.failures) == (dead.id, token + 1, 0)
    assert webhooks.settle(session, dead, attempt(at(0), 200), now=at(LEASE)) is None
    assert status_of(session, alive) == "pending"
    settled = webhooks.settle(session, alive, attempt(at(LEASE), 200), now=at(LEASE))
    assert settled is not None
    assert settled.status == "delivered"


def test_a_message_that_is_being_sent_is_not_taken_from_its_sender_when_another_disables_the_url(
    session: Session,
) -> None:
    message(session)
    message(session)
    sending, other = claim(session, at(0)), claim(session, at(0))
    assert sending is not None
    assert other is not None
    webhooks.settle(session, other, attempt(at(1), 410), now=at(1))
    settled = webhooks.settle(session, sending, attempt(at(1), 200), now=at(1))
    assert settled is not None
    assert settled.status == "delivered"


def test_slow_receivers_of_one_tenant_leave_room_for_others(session: Session) -> None:
    for tenant in "aaaaabbbbb":
        message(session, tenant)
    message(session, "c", seconds=1)
    taken = [claim(session, at(2)) for _ in range(6)]
    assert [row.tenant if row else None for row in taken] == ["a", "b", "c", "a", "b", None]


def test_two_senders_never_get_the_same_message(database: Database) -> None:
    with database.transaction() as session:
        ids = {message(session, tenant, seconds=number).id for number, tenant in enumerate("abcdefgh")}
    found: list[str] = []

    def work() -> None:
        while True:
            with database.transaction() as session:
                row = claim(session, at(100))
            if row is None:
                return
            found.append(row.id)

    together(*[work] * 4)
    assert sorted(found) == sorted(ids)


def test_only_the_last_attempts_are_kept(session: Session) -> None:
    row = message(session)
    row.attempts = [dump(attempt(at(0)))] * 20
    session.flush()
    assert len(send(session, at(0)).attempts) == webhooks.ATTEMPTS_KEPT == 20


def test_ended_messages_expire_and_pending_ones_keep_their_job(session: Session) -> None:
    waiting = message(session, url="https://hooks.example/1")
    delivered = message(session, url="https://hooks.example/2", seconds=-1)
    assert send(session, at(0), 200).id == delivered.id
    assert retention.expire_webhooks(session, at(0)) == 0
    assert retention.expire_jobs(session, at(1000)) == 1
    assert session.get(Job, waiting.job_id) is not None
    assert session.scalars(select(WebhookMessage.id)).all() == [waiting.id]
    webhooks.redeliver(session, "a", waiting.job_id, at(0))
    send(session, at(0), 410)
    assert retention.expire_webhooks(session, at(1)) == 1
    assert webhooks.disabled_by(session, waiting.endpoint) is None


def test_a_deleted_job_takes_its_message_along(session: Session) -> None:
    row = message(session)
    assert transitions.delete_job(session, "a", row.job_id)
    session.expire_all()
    assert session.scalars(select(WebhookMessage)).all() == []
