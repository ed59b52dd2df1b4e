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

_PRIVATE = "does not lead to public addresses alone"
_NUMBER = "four decimal numbers"
_SCHEME = "Only https://"
BAD = {
    "http://127.0.0.1/": _SCHEME,
    "http://127.0.0.1:8000/": _SCHEME,
    "https://127.0.0.1/": _PRIVATE,
    "https://[::1]/": _PRIVATE,
    "https://[::ffff:127.0.0.1]/": _PRIVATE,
    "https://169.254.169.254/latest/meta-data/": _PRIVATE,
    "https://2130706433/": _NUMBER,
    "https://0x7f000001/": _NUMBER,
    "https://017700000001/": _NUMBER,
    "https://user@hooks.example/": "No user",
    "https://user:pass@hooks.example/": "No user",
    "https://localhost/": _PRIVATE,
    "https://no-such-host.invalid/": _PRIVATE,
    "file:///etc/passwd": _SCHEME,
    "gopher://hooks.example/": _SCHEME,
    "https://hooks.example:22/": "Port 22",
}
"""And why not: of a name that does not resolve here, everything would be refused."""
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
    for url, reason in BAD.items():
        fields: dict[str, Any] = {"steps": [PRUNE], "webhook": {"url": url}}
        Spec(fields, Code.INVALID_SPEC, "/webhook/url", reason, known=known)(place)
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
