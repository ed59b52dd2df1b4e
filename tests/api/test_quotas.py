"""What one tenant may keep: open uploads, stored bytes, the same bytes once; and what others can learn of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from models.database import migrate
from models.settings import Settings
from tests.api import stories, tus
from tests.api.serving import Api
from tests.api.stories import problem_of
from tests.services import Postgres

BODY = stories.a_pt2(bytes(50_000))


def blobs(settings: Settings) -> list[str]:
    return [path.name for path in Path(settings.blobs).glob("??/??/*")]


def test_open_uploads_are_counted_for_each_tenant_and_completed_ones_make_room(
    serve: Callable[..., Api], two_keys: tuple[str, str]
) -> None:
    api = serve(open_access=False, max_open_uploads=3)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other:
        paths = [tus.create(mine, 5) for _ in range(3)]
        response = mine.post("/uploads", headers={**tus.VERSION, "Upload-Length": "5"})
        problem_of(response, 429, "too_many_uploads")
        assert int(response.headers["retry-after"]) >= 1
        tus.create(other, 5)
        assert tus.patch(mine, paths[0], 0, b"12345").status_code == 204
        tus.create(mine, 5)
        assert mine.delete(paths[1], headers=tus.VERSION).status_code == 204
        tus.create(mine, 5)
        assert mine.post("/uploads", headers={**tus.VERSION, "Upload-Length": "5"}).status_code == 429


def test_a_thousand_uploads_may_be_open_and_not_one_more(api: Api) -> None:
    for _ in range(1000):
        tus.create(api.client, 1)
    response = api.client.post("/uploads", headers={**tus.VERSION, "Upload-Length": "1"})
    problem_of(response, 429, "too_many_uploads")


def test_an_upload_reserves_its_bytes_when_it_is_created(serve: Callable[..., Api]) -> None:
    api = serve(max_stored_bytes=1000)
    first = tus.create(api.client, 700)
    refused = api.client.post("/uploads", headers={**tus.VERSION, "Upload-Length": "301"})
    assert "1000" in problem_of(refused, 413, "quota_exceeded")["detail"]
    problem_of(api.client.post("/models", content=stories.a_pt2(bytes(400))), 413, "quota_exceeded")
    tus.create(api.client, 300)
    assert api.client.delete(first, headers=tus.VERSION).status_code == 204
    tus.create(api.client, 700)


def test_raw_uploads_stop_at_the_quota_also_when_they_do_not_say_how_long_they_are(
    serve: Callable[..., Api], settings: Settings
) -> None:
    api = serve(max_stored_bytes=120_000)
    network = stories.upload_network(api.client, BODY)
    other = stories.a_pt2(b"x" * 80_000)

    def unknown_length() -> Iterator[bytes]:
        yield other

    problem_of(api.client.post("/models", content=other), 413, "quota_exceeded")
    problem_of(api.client.post("/models", content=unknown_length()), 413, "quota_exceeded")
    assert len(blobs(settings)) == 1
    assert api.client.delete(f"/models/{network}").status_code == 204
    assert api.client.post("/models", content=unknown_length()).status_code == 201


def test_the_same_bytes_are_stored_and_counted_once_under_rows_of_their_own(
    serve: Callable[..., Api], settings: Settings
) -> None:
    api = serve(max_stored_bytes=2 * len(BODY) + 1000)
    rows = [api.client.post("/models", content=BODY).json() for _ in range(3)]
    for _ in range(3):
        upload = tus.sent(api.client, BODY)
        rows.append(api.client.post("/models", params={"upload": upload}).json())
    assert {row["sha256"] for row in rows} == {hashlib.sha256(BODY).hexdigest()}
    assert len({row["id"] for row in rows}) == 6
    assert blobs(settings) == [rows[0]["sha256"]]
    assert api.client.delete(f"/models/{rows[0]['id']}").status_code == 204
    with api.service.blobs.open(rows[0]["sha256"]) as stored:
        assert stored.read() == BODY
    problem_of(api.client.post("/models", content=stories.a_pt2(bytes(2 * len(BODY)))), 413, "quota_exceeded")


def test_what_jobs_gave_back_counts_until_the_job_is_deleted(serve: Callable[..., Api]) -> None:
    api = serve(max_stored_bytes=40_000)
    job = stories.submit(api)
    stories.succeed(api, stories.start(api.service.database), {"model.onnx": bytes(39_000)})
    problem_of(api.client.post("/models", content=stories.a_pt2(bytes(5000))), 413, "quota_exceeded")
    assert api.client.delete(f"/jobs/{job['id']}").status_code == 204
    assert api.client.post("/models", content=stories.a_pt2(bytes(5000))).status_code == 201


def test_nobody_learns_what_another_tenant_stores(
    serve: Callable[..., Api], two_keys: tuple[str, str], settings: Settings
) -> None:
    api = serve(open_access=False, max_stored_bytes=len(BODY) + 100)
    with api.with_key(two_keys[0]) as mine, api.with_key(two_keys[1]) as other:
        assert mine.post("/models", content=BODY).status_code == 201

        def shape(client: httpx.Client, body: bytes) -> list[object]:
            """Everything that an answer shows and that is not the sender's own."""
            answers = [client.post("/models", content=body)]
            upload = tus.sent(client, body) if answers[0].status_code == 413 else None
            if upload:
                answers.append(client.post("/models", params={"upload": upload}))
            return [(answer.status_code, sorted(answer.headers), sorted(answer.json())) for answer in answers]

        fresh = stories.a_pt2(b"y" * 50_000)
        known_elsewhere = shape(other, BODY)
        assert other.delete(f"/models/{other.get('/models').json()['data'][0]['id']}").status_code == 204
        assert shape(other, fresh) == known_elsewhere
        problem_of(other.post("/models", content=BODY), 413, "quota_exceeded")
    assert len(blobs(settings)) == 2


def test_uploads_created_at_once_never_overdraw_the_quota(serve: Callable[..., Api]) -> None:
    server = Postgres()
    try:
        server.create("quota", "template1")
        migrate(server.url("quota"))
        api = serve(database_url=server.url("quota"), max_stored_bytes=1000, max_open_uploads=8)

        def create(length: int) -> int:
            return api.client.post("/uploads", headers={**tus.VERSION, "Upload-Length": str(length)}).status_code

        with ThreadPoolExecutor(16) as clients:
            assert list(clients.map(create, [400] * 16)).count(201) == 2
            assert list(clients.map(create, [1] * 16)).count(201) == 6
    finally:
        server.close()
