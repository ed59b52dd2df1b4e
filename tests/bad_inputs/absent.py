"""Rows about what does not exist here. Each shows that it does not, and fails the day that it does: the row then
belongs into another chapter, with the outcome that the list of bad inputs has for it."""

from __future__ import annotations

import httpx

from tests.api import stories
from tests.api.stories import problem_of
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import Row, row


def no_signed_urls(place: Place) -> None:
    """The address of an artifact has nothing in it that opens it, and opens nothing without a key."""
    job = stories.submit(place.api, place.client)["id"]
    stories.succeed(place.api, stories.start(place.api.service.database), {"model.onnx": b"bytes"})
    [artifact] = place.client.get(f"/jobs/{job}/artifacts").json()["data"]
    assert artifact["url"] == f"/jobs/{job}/artifacts/model.onnx"
    signed = {"expires": "4102444800", "signature": "0" * 64}
    problem_of(httpx.get(f"{place.api.base_url}{artifact['url']}", params=signed), 401, "unauthorized")
    problem_of(place.client.get(artifact["url"], params=signed), 422, "invalid_request")


ROWS: tuple[Row, ...] = (row(109, "signed URL after its time", no_signed_urls),)
