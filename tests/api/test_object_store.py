"""The api over a bucket: uploads go there, downloads come through it, and nobody who downloads ever sees it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of
from tests.object_store import ObjectStore

CONTENT = os.urandom(20_000_000)


@pytest.fixture
def own_server() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.close()


def test_uploads_and_downloads_pass_through_the_api(serve: Callable[..., Api], object_store: ObjectStore) -> None:
    api = serve(**object_store.settings())
    body = stories.a_pt2(CONTENT)
    network_id = stories.upload_network(api.client, body)
    sha256 = hashlib.sha256(body).hexdigest()
    assert api.client.get(f"/models/{network_id}").json()["sha256"] == sha256
    assert api.service.blobs.verify(sha256)
    stories.inspect_next(api.service.database, stories.NETWORK)
    made = api.client.post("/jobs", json={"model": network_id, "steps": [stories.PRUNE]})
    stories.succeed(api, stories.start(api.service.database), {"model.onnx": CONTENT})
    url = f"/jobs/{made.json()['id']}/artifacts/model.onnx"
    whole = api.client.get(url)
    assert whole.content == CONTENT
    assert whole.headers["content-length"] == str(len(CONTENT))
    assert whole.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
    part = api.client.get(url, headers={"Range": "bytes=9000000-9999999"})
    assert (part.status_code, part.content) == (206, CONTENT[9_000_000:10_000_000])


def test_an_upload_that_is_refused_leaves_nothing_in_the_bucket(
    serve: Callable[..., Api], object_store: ObjectStore
) -> None:
    api = serve(**object_store.settings())
    problem_of(api.client.post("/models", content=b"\x80\x04 a pickle" * 100), 422, "unsafe_pickle")
    assert list(api.service.blobs.scan()) == []
    assert api.service.blobs.clean(older_than_seconds=-60) == 0


def test_a_bucket_that_is_away_is_a_503(serve: Callable[..., Api], own_server: ObjectStore) -> None:
    api = serve(**own_server.settings())
    assert api.client.get("/readyz").json()["checks"]["blobs"] == "ok"
    own_server.stop()
    assert "Retry-After" in api.client.post("/models", content=stories.a_pt2(b"x" * 100)).headers
    problem_of(api.client.post("/models", content=stories.a_pt2(b"x" * 100)), 503, "unavailable")
    assert api.client.get("/models").json()["data"] == []
    assert "does not answer" in api.client.get("/readyz").json()["checks"]["blobs"]
