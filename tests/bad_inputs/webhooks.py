"""Webhooks: row 102, refused when it is saved, and again when it would be sent."""

from __future__ import annotations

from typing import Any

from models.errors import Code
from tests.api.stories import problem_of
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import Row, row
from tests.bad_inputs.specs import PRUNE, Spec, network
from tests.receivers import Receiver, answering
from tests.worker import test_webhooks as sending

BAD = [
    "http://127.0.0.1/",
    "http://127.0.0.1:8000/",
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://169.254.169.254/latest/meta-data/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://017700000001/",
    "https://user@hooks.example/",
    "https://user:pass@hooks.example/",
    "https://localhost/",
    "https://no-such-host.invalid/",
    "file:///etc/passwd",
    "gopher://hooks.example/",
    "https://hooks.example:22/",
]
BAD_WEBHOOKS: tuple[Any, ...] = (
    {},
    {"url": 1},
    {"url": ""},
    {"url": "https://x/" + "x" * 2048},
    {"url": "https://x", "to": 1},
)
STRICT = sending.LOOPBACK.model_copy(update={"webhook_allowed": ()})


def saved(place: Place) -> None:
    known = {"model": network(place)}
    for url in BAD:
        fields: dict[str, Any] = {"steps": [PRUNE], "webhook": {"url": url}}
        Spec(fields, Code.INVALID_SPEC, "/webhook/url", known=known)(place)
        dry = place.client.post("/jobs?dry_run=true", json=known | fields)
        assert [each["pointer"] for each in problem_of(dry, 422, "invalid_spec")["errors"]] == ["/webhook/url"]
    for webhook in BAD_WEBHOOKS:
        Spec({"steps": [PRUNE], "webhook": webhook}, Code.INVALID_SPEC, known=known)(place)


def sent(place: Place) -> None:
    """It came into a row all the same, or its name leads elsewhere by now."""
    database = place.api.service.database
    for host, found in (("127.0.0.1", None), ("[::1]", None), ("hooks.example", ["93.184.215.14", "127.0.0.1"])):
        with Receiver() as receiver:
            message = sending.written(database, f"http://{host}:{receiver.port}/", place.tenant)
            if found is None:
                sending.deliver(database, settings=STRICT)
            else:
                sending.deliver(database, lambda *_, found=found: found, STRICT)
            assert receiver.received == []
        assert sending.row(database, message).failures == 1
        assert "does not lead to public addresses alone" in sending.problem(database, message)


def redirected(place: Place) -> None:
    database = place.api.service.database
    with Receiver() as inside, Receiver(answering(302, Location=inside.url)) as receiver:
        message = sending.written(database, receiver.url, place.tenant)
        sending.deliver(database)
        assert (len(receiver.received), inside.received) == (1, [])
    assert "redirects are not followed" in sending.problem(database, message)


ROWS: tuple[Row, ...] = (row(102, "webhook to a private address", saved, sent, redirected),)
