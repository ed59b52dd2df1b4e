"""Webhooks: row 102, refused when it is saved, and again when it would be sent."""

from __future__ import annotations

from models.errors import Code
from tests.api.test_webhooks import BAD
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import Row, row
from tests.bad_inputs.specs import PRUNE, Spec, network
from tests.receivers import Receiver, answering
from tests.worker import test_webhooks as sending

STRICT = sending.LOOPBACK.model_copy(update={"webhook_allowed": ()})


def saved(place: Place) -> None:
    known = {"model": network(place)}
    for url in BAD:
        Spec({"steps": [PRUNE], "webhook": {"url": url}}, Code.INVALID_SPEC, "/webhook/url", known=known)(place)


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


def redirected(place: Place) -> None:
    database = place.api.service.database
    with Receiver() as inside, Receiver(answering(302, Location=inside.url)) as receiver:
        message = sending.written(database, receiver.url, place.tenant)
        sending.deliver(database)
        assert (len(receiver.received), inside.received) == (1, [])
    assert "redirects are not followed" in sending.problem(database, message)


ROWS: tuple[Row, ...] = (row(102, "webhook to a private address", saved, sent, redirected),)
