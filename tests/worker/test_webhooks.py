"""Messages to webhooks, sent to real receivers over real connections."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import trustme
from sqlalchemy import select
from sqlalchemy.orm import Session
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from models import webhook_secrets
from models.database import Database, now
from models.settings import Settings
from models.spec import Webhook as Asked
from models.tables import WebhookMessage
from models.webhook_urls import Busy, TenantLookup, system_lookup
from tests.models import rows
from tests.receivers import Answer, Receiver, answering
from tests.worker.fleet import Fleet, until
from worker.webhooks import Courier

MASTER = "a deployment's master secret, 32+"
LOOPBACK = Settings(
    webhook_secret=MASTER, webhook_http=True, webhook_allowed=("127.0.0.0/8",), webhook_timeout_seconds=5.0
)


@pytest.fixture
def local(sqlite_url: str) -> Iterator[Database]:
    opened = Database(sqlite_url)
    yield opened
    opened.close()


def written(database: Database, url: str, tenant: str = "a") -> str:
    with database.transaction() as session:
        seconds = (now(session) - rows.at(0)).total_seconds()
        return rows.message(session, tenant, url=url, seconds=seconds).id


def deliver(
    database: Database, lookup: TenantLookup = system_lookup, settings: Settings = LOOPBACK, after: float = 0
) -> None:
    """Send all that is due `after` seconds from now."""

    def clock(session: Session) -> datetime:
        return now(session) + timedelta(seconds=after)

    Courier(database, settings, threading.Event(), lookup, clock).deliver()


def row(database: Database, message_id: str) -> WebhookMessage:
    with database.read() as session:
        return session.get_one(WebhookMessage, message_id)


def problem(database: Database, message_id: str) -> str:
    said: str = row(database, message_id).attempts[-1]["problem"]
    return said


def secrets(database: Database) -> list[str]:
    with database.transaction() as session:
        return [
            webhook_secrets.shown(webhook_secrets.derived(MASTER, secret))
            for secret in webhook_secrets.ensured(session, "a", now(session))
        ]


def test_a_message_is_what_the_library_for_receivers_accepts(local: Database) -> None:
    with Receiver() as receiver:
        message_id = written(local, receiver.url + "?a=b")
        deliver(local)
        [received] = receiver.received
    sent = row(local, message_id)
    assert (sent.status, sent.failures, sent.attempts[0]["status_code"]) == ("delivered", 0, 204)
    assert (received.id, received.path, received.headers["content-type"]) == (
        message_id,
        "/hook?a=b",
        "application/json",
    )
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    [secret] = secrets(local)
    verified = Webhook(secret).verify(received.body, received.headers)
    assert (verified["type"], verified["data"]["id"]) == ("job.cancelled", sent.job_id)
    assert received.is_signed_with(secret)
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(received.body + b" ", received.headers)


def test_while_a_secret_is_rotated_either_verifies(local: Database) -> None:
    with Receiver() as receiver:
        [old] = secrets(local)
        with local.transaction() as session:
            webhook_secrets.rotate(session, "a", timedelta(hours=1), now(session))
        new = secrets(local)[0]
        for after in (0, 3700):
            written(local, receiver.url)
            deliver(local, after=after)
        during, afterwards = receiver.received
    for secret in (old, new):
        Webhook(secret).verify(during.body, during.headers)
    assert afterwards.is_signed_with(new)
    assert not afterwards.is_signed_with(old)


def test_the_same_message_comes_again_under_the_same_id_until_it_is_taken(local: Database) -> None:
    with Receiver(500) as receiver:
        message_id = written(local, receiver.url)
        deliver(local)
        deliver(local)  # the next attempt is five seconds away
        assert len(receiver.received) == 1
        deliver(local, after=6)
        receiver.answer = answering(200)
        deliver(local, after=6 + 331)
    assert {received.id for received in receiver.received} == {message_id}
    assert len({received.body for received in receiver.received}) == 1
    assert len({received.headers["webhook-timestamp"] for received in receiver.received}) == 3
    assert [attempt["status_code"] for attempt in row(local, message_id).attempts] == [500, 500, 200]


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (answering(404), "pending", "It answered 404."),
        (answering(301, Location="http://127.0.0.1:1/"), "pending", "redirects are not followed"),
        (answering(410), "failed", "It answered 410."),
    ],
)
def test_what_is_no_2xx_is_no_delivery(local: Database, answer: Answer, status: str, words: str) -> None:
    with Receiver() as elsewhere, Receiver(answer) as receiver:
        receiver.answer = answering(302, Location=elsewhere.url) if "redirects" in words else answer
        message_id = written(local, receiver.url)
        deliver(local)
        assert (len(receiver.received), elsewhere.received) == (1, [])
    assert row(local, message_id).status == status
    assert words in problem(local, message_id)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("", 5),
        ("soon", 5),
        ("-3", 5),
        ("9" * 30, 5),
        ("Wed, 01 Jan 2020 00:00:00 GMT", 5),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 5),
        ("Mon, 01 Jan 9999 00:00:00 GMT", 86400),
    ],
)
def test_retry_after_is_heeded(local: Database, header: str, seconds: int) -> None:
    with Receiver(answering(429, Retry_After=header)) as receiver:
        message_id = written(local, receiver.url)
        deliver(local)
    sent = row(local, message_id)
    assert sent.next_attempt_at is not None
    waited = (sent.next_attempt_at - datetime.fromisoformat(sent.attempts[0]["at"])).total_seconds()
    assert seconds <= waited < seconds * 1.1 + 2


def test_a_mistake_of_ours_is_an_attempt_that_failed_and_no_message_that_is_sent_for_ever(
    local: Database, caplog: pytest.LogCaptureFixture
) -> None:
    url = "http://hooks.example/hook?token=s3cret"

    def lookup(*_: object) -> list[str]:
        raise KeyError(url)

    message_id = written(local, url)
    deliver(local, lookup)
    sent = row(local, message_id)
    assert (sent.status, sent.failures, sent.lease_expires_at) == ("pending", 1, None)
    assert "a mistake of the service's" in problem(local, message_id)
    assert "KeyError while it was sent" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("by_all", [True, False])
def test_a_message_waits_for_a_look_up_and_its_receiver_is_not_blamed(local: Database, by_all: bool) -> None:
    asked: list[str] = []

    def busy(tenant: str, *_: object) -> list[str]:
        asked.append(tenant)
        raise Busy(by_all=by_all)

    with Receiver() as receiver:
        message_id = written(local, receiver.url.replace("127.0.0.1", "hooks.example"), "b")
        deliver(local, busy)
        sent = row(local, message_id)
        assert (sent.status, sent.failures, sent.attempts) == ("pending", 0, [])
        assert (asked, receiver.received) == (["b"], [])
        deliver(local, lambda *_: ["127.0.0.1"], after=31)
    assert row(local, message_id).status == "delivered"


def never(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(3)


def byte_by_byte(handler: BaseHTTPRequestHandler) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)


def continuing_for_ever(handler: BaseHTTPRequestHandler) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        time.sleep(0.05)


def endless_headers(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-More: " + b"x" * 1000 + b"\r\n")


def no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


def nothing(handler: BaseHTTPRequestHandler) -> None:
    pass


@pytest.mark.parametrize(
    ("answer", "seconds", "words"),
    [
        (never, 0.4, "No answer within 0.4 seconds."),
        (byte_by_byte, 0.4, "No answer within 0.4 seconds."),
        (continuing_for_ever, 0.4, "No answer within 0.4 seconds."),
        (endless_headers, 5.0, "The connection ended before an answer, or what came was no HTTP."),
        (no_http, 5.0, "The connection ended before an answer, or what came was no HTTP."),
        (nothing, 5.0, "The connection ended before an answer, or what came was no HTTP."),
    ],
)
def test_a_receiver_can_neither_keep_nor_flood_the_sender(
    local: Database, answer: Answer, seconds: float, words: str
) -> None:
    with Receiver(answer) as receiver:
        message_id = written(local, receiver.url)
        began = time.monotonic()
        deliver(local, settings=LOOPBACK.model_copy(update={"webhook_timeout_seconds": seconds}))
        assert time.monotonic() - began < seconds + 2
    assert problem(local, message_id) == words
    assert row(local, message_id).status == "pending"


def test_of_an_answer_without_end_the_status_is_read_alone(local: Database) -> None:
    ended = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            ended.set()

    with Receiver(endless) as receiver:
        message_id = written(local, receiver.url)
        deliver(local)
        assert ended.wait(5)
    assert row(local, message_id).status == "delivered"


def test_a_name_that_led_outside_when_it_was_given_and_inside_now_is_not_called(local: Database) -> None:
    outside, inside = ["93.184.215.14"], ["127.0.0.1"]
    closed = LOOPBACK.model_copy(update={"webhook_allowed": ()})
    with Receiver() as receiver:
        message_id = written(local, f"http://hooks.example:{receiver.port}/")
        for found in (inside, outside + inside, ["::ffff:127.0.0.1"], []):
            deliver(
                local, lambda *_, found=found: found, closed, after=10**5 * (len(row(local, message_id).attempts) + 1)
            )
        assert receiver.received == []
    assert len(row(local, message_id).attempts) == 4
    assert "does not lead to public addresses alone" in problem(local, message_id)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://[::1]:{port}/", "http://localhost:{port}/"])
def test_what_must_not_be_called_is_not_even_when_it_came_into_a_row(local: Database, url: str) -> None:
    with Receiver() as receiver:
        message_id = written(local, url.format(port=receiver.port))
        deliver(local, settings=LOOPBACK.model_copy(update={"webhook_allowed": ()}))
        assert receiver.received == []
    assert row(local, message_id).failures == 1
    assert "does not lead to public addresses alone" in problem(local, message_id)


def test_a_name_is_looked_up_once_and_its_addresses_are_tried_in_turn(local: Database) -> None:
    asked: list[tuple[str, int]] = []

    def lookup(_: str, host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.9", "127.0.0.1"]  # nobody listens at the first

    with Receiver() as receiver:
        message_id = written(local, f"http://hooks.example:{receiver.port}/")
        deliver(local, lookup)
        assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
        assert asked == [("hooks.example", receiver.port)]
    assert row(local, message_id).status == "delivered"


def test_proxies_of_the_environment_are_not_used(local: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with Receiver() as receiver:
        message_id = written(local, receiver.url)
        deliver(local)
    assert row(local, message_id).status == "delivered"


def test_a_receiver_that_is_not_there_is_tried_again(local: Database) -> None:
    with Receiver() as receiver:
        pass
    message_id = written(local, receiver.url)
    deliver(local)
    assert problem(local, message_id) == "No connection came about."


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA(key_type=trustme.KeyType.ECDSA)


@pytest.mark.parametrize(
    ("certificate", "trusted", "words"),
    [
        ("hooks.example", True, None),
        ("other.example", True, "The certificate is not accepted: Hostname mismatch"),
        ("127.0.0.1", True, "The certificate is not accepted: Hostname mismatch"),
        ("hooks.example", False, "The certificate is not accepted: unable to get local issuer"),
    ],
)
def test_over_tls_the_name_is_what_the_certificate_must_be_for(
    local: Database,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certificate: str,
    trusted: bool,
    words: str | None,
) -> None:
    names: list[str | None] = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certificate).configure_cert(tls)
    tls.sni_callback = lambda _, name, __: names.append(name)
    if trusted:
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with Receiver(tls=tls) as receiver:
        message_id = written(local, f"https://hooks.example:{receiver.port}/")
        deliver(local, lambda *_: ["127.0.0.1"])
        assert len(receiver.received) == (words is None)
    assert names == ["hooks.example"]
    if words is None:
        assert row(local, message_id).status == "delivered"
    else:
        assert words in problem(local, message_id)


def test_a_receiver_that_speaks_no_tls_is_told_from_one_that_is_away(local: Database) -> None:
    with Receiver() as receiver:
        message_id = written(local, receiver.url.replace("http", "https"))
        deliver(local)
    assert problem(local, message_id) == "No TLS connection came about."


def test_no_log_has_urls_or_secrets(local: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with Receiver(500) as receiver:
        written(local, receiver.url + "?token=s3cret")
        deliver(local)
    assert "It answered 500." in caplog.text
    for word in ("s3cret", "/hook", *secrets(local), MASTER):
        assert word not in caplog.text


def test_a_worker_without_the_master_secret_leaves_messages_to_others(
    local: Database, caplog: pytest.LogCaptureFixture
) -> None:
    message_id = written(local, "https://hooks.example/")
    deliver(local, settings=Settings())
    assert "MODELPRESS_WEBHOOK_SECRET" in caplog.text
    assert (row(local, message_id).status, row(local, message_id).token) == ("pending", 0)


def test_the_sweep_has_the_message_of_a_job_sent(fleet: Fleet) -> None:
    with Receiver() as receiver:
        fleet.start(
            "control",
            MODELPRESS_WEBHOOK_SECRET=MASTER,
            MODELPRESS_WEBHOOK_HTTP="true",
            MODELPRESS_WEBHOOK_ALLOWED="127.0.0.1/32",
        )
        spec = fleet.spec("finish", {}).model_copy(update={"webhook": Asked(url=receiver.url)})
        job_id = fleet.submit_spec(spec, nudge=False)
        fleet.cancel(job_id)
        until(lambda: receiver.received, "the message to come")
        assert receiver.received[0].json["data"]["id"] == job_id
        until(lambda: _status(fleet, job_id) == "delivered", "the delivery to be written down")


def _status(fleet: Fleet, job_id: str) -> str | None:
    with fleet.database.read() as session:
        return session.scalar(select(WebhookMessage.status).where(WebhookMessage.job_id == job_id))
