"""Secrets that are derived and never stored."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from models import webhook_secrets
from models.tables import WebhookSecret
from models.webhook_secrets import current, derived, ensured, rotate, shown, signature
from tests.models.rows import at, everything

MASTER = "m" * 32


def test_a_tenant_has_one_secret_from_the_first_time_on(session: Session) -> None:
    assert current(session, "a", at(0)) == []
    [first] = ensured(session, "a", at(0))
    assert list(ensured(session, "a", at(9))) == [first]
    [other] = ensured(session, "b", at(0))
    assert derived(MASTER, first) != derived(MASTER, other) != derived("n" * 32, other)
    assert derived(MASTER, first) == derived(MASTER, session.scalars(select(WebhookSecret)).first() or first)


def test_two_tenants_with_the_same_salt_have_different_secrets(session: Session) -> None:
    a, b = (WebhookSecret(id=tenant, tenant=tenant, salt=bytes(16), created_at=at(0)) for tenant in "ab")
    assert derived(MASTER, a) != derived(MASTER, b)


def test_a_secret_is_32_bytes_that_the_database_does_not_hold(session: Session) -> None:
    [row] = ensured(session, "a", at(0))
    secret = derived(MASTER, row)
    assert len(secret) == 32
    assert shown(secret).startswith("whsec_")
    assert secret not in row.salt
    assert shown(secret) not in str(everything(session))


def test_after_a_rotation_both_sign_until_the_old_one_expires(session: Session) -> None:
    [first] = ensured(session, "a", at(0))
    second = rotate(session, "a", timedelta(hours=1), at(1))
    assert list(current(session, "a", at(3600))) == [second, first]
    assert list(current(session, "a", at(3601))) == [second]
    third = rotate(session, "a", timedelta(0), at(10))
    assert list(current(session, "a", at(10))) == [third]
    rotate(session, "a", timedelta(hours=1), at(20))
    assert session.get(WebhookSecret, first.id) is None


def test_another_rotation_lets_no_old_secret_live_longer(session: Session) -> None:
    [first] = ensured(session, "a", at(0))
    rotate(session, "a", timedelta(hours=1), at(0))
    rotate(session, "a", timedelta(hours=5), at(60))
    assert first.expires_at == at(3600) or session.get_one(WebhookSecret, first.id).expires_at == at(3600)
    assert len(current(session, "a", at(3599))) == 3


def test_no_more_than_five_sign_at_once_and_the_newest_are_those(session: Session) -> None:
    ensured(session, "b", at(0))
    made = [rotate(session, "a", timedelta(hours=1), at(number)) for number in range(7)]
    assert [row.id for row in current(session, "a", at(7))] == [row.id for row in made[:1:-1]]
    assert len(made[2:]) == webhook_secrets.MOST == 5
    assert len(current(session, "b", at(7))) == 1


def test_the_newest_is_the_one_made_last_whatever_its_id(session: Session) -> None:
    ids = ["whs_c", "whs_a", "whs_b"]
    for number, name in enumerate(ids):
        session.add(WebhookSecret(id=name, tenant="a", salt=bytes(16), created_at=at(number), expires_at=None))
    session.flush()
    assert [row.id for row in current(session, "a", at(9))] == ids[::-1]


def test_a_signature_is_what_the_specification_and_its_library_say() -> None:
    # The example of the library's README.
    library = Webhook("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    key, body = library._whsecret, b'{"test": 2432232314}'
    signed = signature([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature([key, key], "m", 1, b"").count("v1,") == 2
    assert webhook_secrets.SALT_BYTES >= 16
