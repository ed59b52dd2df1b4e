"""Resumable uploads: what tus 1.0 says of every request, and what becomes of the bytes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from models import uploads
from models.settings import Settings
from models.tables import ResumableUpload
from tests.api import stories, tus
from tests.api.serving import Api
from tests.api.stories import problem_of
from tests.api.test_uploads import PICKLE, soon

BODY = stories.a_pt2(bytes(range(256)) * 12_000)
"""Three megabytes: more than one chunk."""


def incoming(api: Api) -> list[Path]:
    return list(api.service.transfers.incoming.folder.iterdir())


def test_a_file_comes_in_parts_and_becomes_a_network(api: Api) -> None:
    path = tus.create(api.client, len(BODY), Upload_Metadata="filename bmV0LnB0Mg==,is_private")
    at = 0
    for end in (1, 1_000_000, 1_000_001, len(BODY)):
        assert tus.offset(api.client, path) == at
        response = tus.patch(api.client, path, at, BODY[at:end])
        assert response.status_code == 204
        assert response.headers["tus-resumable"] == "1.0.0"
        assert int(response.headers["upload-offset"]) == end
        assert 86_000 < parsedate_to_datetime(response.headers["upload-expires"]).timestamp() - time.time() < 86_500
        at = end
    head = api.client.head(path, headers=tus.VERSION)
    assert int(head.headers["upload-length"]) == len(BODY)
    assert head.headers["upload-metadata"] == "filename bmV0LnB0Mg==,is_private"
    response = api.client.post("/models", params={"upload": path.rpartition("/")[2]})
    assert response.status_code == 201, response.text
    row = response.json()
    assert (row["name"], row["size_bytes"], row["status"]) == ("net.pt2", len(BODY), "inspecting")
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()
    with api.service.blobs.open(row["sha256"]) as stored:
        assert stored.read() == BODY
    assert incoming(api) == []
    assert response.headers["location"] == f"/models/{row['id']}"


def test_the_same_upload_again_is_the_same_row_and_can_be_a_data_set_too(api: Api) -> None:
    upload = tus.sent(api.client, stories.an_npz())
    first = api.client.post("/datasets", params={"upload": upload, "name": "mine"}).json()
    again = api.client.post("/datasets", params={"upload": upload})
    assert (again.status_code, again.json()) == (201, first)
    assert first["name"] == "mine"
    assert len(api.client.get("/datasets").json()["data"]) == 1
    network = api.client.post("/models", params={"upload": upload}).json()
    assert network["sha256"] == first["sha256"]
    assert api.client.delete(f"/datasets/{first['id']}").status_code == 204
    third = api.client.post("/datasets", params={"upload": upload})
    assert third.status_code == 201
    assert third.json()["id"] != first["id"]


def test_the_same_upload_to_be_read_otherwise_is_another_row(api: Api) -> None:
    upload = tus.sent(api.client, BODY)
    first = api.client.post("/models", params={"upload": upload}).json()
    assert first["read_options"] == {"input_shape": [], "arch": None, "num_classes": None}
    shaped = {"upload": upload, "input_shape": "1,3,32,32"}
    second, again = (api.client.post("/models", params=shaped).json() for _ in range(2))
    assert second["read_options"] == {**first["read_options"], "input_shape": ["1,3,32,32"]}
    assert again == second
    assert first["id"] != second["id"]


def test_two_requests_for_one_upload_at_once_make_one_row(api: Api) -> None:
    upload = tus.sent(api.client, BODY)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: api.client.post("/models", params={"upload": upload}), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(api.client.get("/models").json()["data"]) == 1


def test_discovery_tells_versions_extensions_and_limits(api: Api) -> None:
    for path in ("/uploads", "/uploads/upl_x"):
        response = api.client.options(path, headers={"Tus-Resumable": "0.2.2"})
        assert response.status_code == 204
        assert response.headers["tus-version"] == "1.0.0"
        assert set(response.headers["tus-extension"].split(",")) == {
            "creation",
            "checksum",
            "expiration",
            "termination",
        }
        assert response.headers["tus-max-size"] == str(64 << 20)
        assert "sha1" in response.headers["tus-checksum-algorithm"].split(",")
    limits = api.client.get("/capabilities").json()["limits"]
    assert (limits["upload_bytes"], limits["open_uploads"], limits["upload_expiry_seconds"]) == (64 << 20, 1000, 86400)


@pytest.mark.parametrize("version", [{}, {"Tus-Resumable": "0.2.2"}])
def test_another_version_is_refused_with_the_one_that_is_spoken(api: Api, version: dict[str, str]) -> None:
    path = tus.create(api.client, 10)
    for method, url in (("POST", "/uploads"), ("PATCH", path), ("HEAD", path), ("DELETE", path)):
        response = api.client.request(method, url, headers={"Upload-Length": "5", **version})
        assert response.status_code == 412
        assert response.headers["tus-version"] == response.headers["tus-resumable"] == "1.0.0"
    assert tus.offset(api.client, path) == 0


def test_a_method_may_come_in_a_header(api: Api) -> None:
    path = tus.create(api.client, 3)
    override = {**tus.PART, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert api.client.post(path, content=b"abc", headers=override).status_code == 204
    assert tus.offset(api.client, path) == 3
    override = {**tus.VERSION, "X-HTTP-Method-Override": "DELETE"}
    assert api.client.post(path, headers=override).status_code == 204
    assert api.client.head(path, headers=tus.VERSION).status_code == 404
    assert api.client.post("/jobs", json={}, headers={"X-HTTP-Method-Override": "GET"}).status_code == 422


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({}, "Upload-Length"),
        ({"Upload-Length": "-1"}, "Upload-Length"),
        ({"Upload-Length": "1e3"}, "Upload-Length"),
        ({"Upload-Length": "9" * 40}, "Upload-Length"),
        ({"Upload-Defer-Length": "1"}, "Defer"),
        ({"Upload-Length": "3", "Upload-Concat": "partial"}, "Concat"),
        ({"Upload-Length": "3", "Upload-Metadata": "filename not-base64!"}, "base64"),
        ({"Upload-Length": "3", "Upload-Metadata": "a YQ==,a YQ=="}, "repeated"),
        ({"Upload-Length": "3", "Upload-Metadata": b"a \xe9\xe9\xe9\xe9"}, "base64"),
        ({"Upload-Length": "3", "Upload-Metadata": b"\xe9 YQ=="}, "ASCII"),
        ({"Upload-Length": "3", "Upload-Metadata": "a " + "YWFh" * 2000}, "4096"),
        ({"Upload-Length": "3", "Repr-Digest": "md5=:YWFh:"}, "Repr-Digest"),
        ({"Upload-Length": "3", "Repr-Digest": "sha-256=:YWFh:"}, "sha-256"),
    ],
)
def test_what_cannot_be_created_says_why(api: Api, headers: dict[str, Any], words: str) -> None:
    problem = problem_of(api.client.post("/uploads", headers={**tus.VERSION, **headers}), 400, "bad_request")
    assert words in problem["detail"]


def test_a_body_at_creation_is_refused_rather_than_dropped(api: Api) -> None:
    response = api.client.post("/uploads", content=b"abc", headers={**tus.PART, "Upload-Length": "3"})
    assert "PATCH" in problem_of(response, 400, "bad_request")["detail"]


def test_a_length_beyond_the_limit_is_refused_and_nothing_is_reserved(serve: Callable[..., Api]) -> None:
    api = serve(max_model_bytes=100, max_dataset_bytes=1000, max_stored_bytes=1500)
    response = api.client.post("/uploads", headers={**tus.VERSION, "Upload-Length": "1001"})
    problem_of(response, 413, "too_large")
    assert response.headers["tus-max-size"] == "1000"
    upload = tus.sent(api.client, stories.a_pt2(bytes(300)))
    problem_of(api.client.post("/models", params={"upload": upload}), 413, "too_large")
    tus.create(api.client, 500)


def test_a_wrong_offset_is_told_the_right_one_and_nothing_is_written(api: Api) -> None:
    path = tus.create(api.client, 100)
    assert tus.patch(api.client, path, 0, b"x" * 10).status_code == 204
    for wrong in (0, 9, 11, 100):
        response = tus.patch(api.client, path, wrong, b"y" * 5)
        problem_of(response, 409, "wrong_offset")
        assert response.headers["upload-offset"] == "10"
    problem_of(tus.patch(api.client, path, 0, b"", Upload_Offset="x"), 400, "bad_request")
    assert incoming(api)[0].read_bytes() == b"x" * 10


@pytest.mark.parametrize("declared", [True, False])
def test_bytes_beyond_the_declared_length_make_the_upload_invalid(api: Api, declared: bool) -> None:
    path = tus.create(api.client, 10)
    assert tus.patch(api.client, path, 0, b"x" * 5).status_code == 204
    body: Any = b"y" * 6 if declared else iter([b"y" * 6])
    problem_of(tus.patch(api.client, path, 5, body), 413, "too_large")
    assert incoming(api) == []
    assert api.client.head(path, headers=tus.VERSION).status_code == 410
    problem_of(tus.patch(api.client, path, 5, b"y"), 410, "upload_invalid")
    problem_of(api.client.post("/models", params={"upload": path.rpartition("/")[2]}), 410, "upload_invalid")


def test_nothing_can_be_added_to_a_complete_upload(api: Api) -> None:
    path = f"/uploads/{tus.sent(api.client, BODY)}"
    problem_of(tus.patch(api.client, path, len(BODY), b"x"), 403, "upload_complete")
    problem_of(tus.patch(api.client, path, 0, BODY), 403, "upload_complete")
    assert api.client.post("/models", params={"upload": path.rpartition("/")[2]}).status_code == 201
    problem_of(tus.patch(api.client, path, len(BODY), b"x"), 403, "upload_complete")
    assert tus.offset(api.client, path) == len(BODY)
    assert incoming(api) == []


def test_another_length_in_a_part_is_inconsistent(api: Api) -> None:
    path = tus.create(api.client, 10)
    response = tus.patch(api.client, path, 0, b"x", Upload_Length="11")
    problem_of(response, 400, "inconsistent_upload_length")
    assert tus.patch(api.client, path, 0, b"x", Upload_Length="10").status_code == 204


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "application/octet-stream"}, {"Content-Encoding": "gzip"}, {"Content-Type": ""}]
)
def test_a_part_is_raw_bytes_under_its_media_type(api: Api, headers: dict[str, str]) -> None:
    path = tus.create(api.client, 10)
    response = api.client.patch(path, content=b"x", headers={**tus.PART, "Upload-Offset": "0", **headers})
    problem_of(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512"])
def test_a_part_whose_checksum_is_another_is_dropped(api: Api, algorithm: str) -> None:
    path = tus.create(api.client, len(BODY))
    half = len(BODY) // 2
    right = tus.checksum(algorithm, BODY[:half])
    assert tus.patch(api.client, path, 0, BODY[:half], Upload_Checksum=right).status_code == 204
    problem_of(tus.patch(api.client, path, half, BODY[half:], Upload_Checksum=right), 460, "checksum_mismatch")
    assert tus.offset(api.client, path) == half
    assert incoming(api)[0].stat().st_size == half
    right = tus.checksum(algorithm, BODY[half:])
    assert tus.patch(api.client, path, half, BODY[half:], Upload_Checksum=right).status_code == 204
    row = api.client.post("/models", params={"upload": path.rpartition("/")[2]}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
def test_the_digests_of_http_are_checked_too(api: Api, algorithm: str) -> None:
    path = tus.create(api.client, 10)
    wrong, right = tus.digest(b"other", algorithm), tus.digest(b"hello", algorithm)
    problem_of(tus.patch(api.client, path, 0, b"hello", Content_Digest=wrong), 460, "checksum_mismatch")
    assert tus.patch(api.client, path, 0, b"hello", Content_Digest=f"md5=:YWFh:, {right}").status_code == 204


@pytest.mark.parametrize(
    "header",
    [
        {"Upload_Checksum": "crc32 AAAA"},
        {"Upload_Checksum": "sha1"},
        {"Upload_Checksum": "sha1 %%%%"},
        {"Upload_Checksum": b"sha1 \xe9\xe9"},
        {"Upload_Checksum": "sha1 YWFh"},
        {"Content_Digest": "md5=:YWFh:"},
        {"Content_Digest": "sha-256=YWFh"},
        {"Repr_Digest": "sha-512=:YWFh:"},
    ],
)
def test_a_checksum_that_cannot_be_checked_is_refused(api: Api, header: dict[str, Any]) -> None:
    path = tus.create(api.client, 10)
    problem_of(tus.patch(api.client, path, 0, b"hello", **header), 400, "bad_request")
    assert tus.offset(api.client, path) == 0


@pytest.mark.parametrize("when", ["created", "appended"])
def test_a_file_that_is_not_the_one_announced_is_dropped_whole_and_may_be_sent_again(api: Api, when: str) -> None:
    announced = {"Repr_Digest": tus.digest(BODY)}
    path = tus.create(api.client, len(BODY), **(announced if when == "created" else {}))
    half = len(BODY) // 2
    assert tus.patch(api.client, path, 0, b"z" * half, **announced).status_code == 204
    other = {"Repr_Digest": tus.digest(b"other")}
    problem_of(tus.patch(api.client, path, half, BODY[half:], **other), 400, "bad_request")
    problem_of(tus.patch(api.client, path, half, BODY[half:]), 460, "checksum_mismatch")
    assert tus.offset(api.client, path) == 0
    assert tus.patch(api.client, path, 0, BODY).status_code == 204
    row = api.client.post("/models", params={"upload": path.rpartition("/")[2]}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("header", ["Repr-Digest", "Content-Digest", "Upload-Checksum"])
def test_a_raw_upload_is_checked_against_what_it_announces(api: Api, header: str) -> None:
    says = tus.checksum if header == "Upload-Checksum" else lambda algorithm, body: tus.digest(body)
    wrong = api.client.post("/models", content=BODY, headers={header: says("sha256", b"other")})
    problem_of(wrong, 460, "checksum_mismatch")
    assert api.client.get("/models").json()["data"] == []
    assert api.client.post("/models", content=BODY, headers={header: says("sha256", BODY)}).status_code == 201


def test_an_upload_is_checked_against_what_its_use_announces(api: Api) -> None:
    upload = tus.sent(api.client, BODY)
    query = {"upload": upload}
    wrong = api.client.post("/models", params=query, headers={"Repr-Digest": tus.digest(b"other")})
    problem_of(wrong, 460, "checksum_mismatch")
    right = api.client.post("/models", params=query, headers={"Repr-Digest": tus.digest(BODY)})
    assert right.status_code == 201


def test_an_upload_that_rested_too_long_is_gone_and_its_bytes_are_swept(serve: Callable[..., Api]) -> None:
    api = serve(upload_expiry_seconds=1.0)
    path = tus.create(api.client, 10)
    assert tus.patch(api.client, path, 0, b"x").status_code == 204
    assert soon(lambda: api.client.head(path, headers=tus.VERSION).status_code == 410, 10)
    problem_of(tus.patch(api.client, path, 1, b"x"), 410, "upload_expired")
    problem_of(api.client.delete(path, headers=tus.VERSION), 410, "upload_expired")
    problem_of(api.client.post("/models", params={"upload": path.rpartition("/")[2]}), 410, "upload_expired")
    assert soon(lambda: incoming(api) == [], 10), "the service sweeps by itself"


def test_a_part_that_takes_longer_than_an_upload_may_rest_does_not_expire(serve: Callable[..., Api]) -> None:
    api = serve(upload_expiry_seconds=0.8, body_minimum_bytes_per_second=1)

    def slow() -> Iterator[bytes]:
        for _ in range(8):
            yield b"x" * 100
            time.sleep(0.25)

    path = tus.create(api.client, 1000)
    response = tus.patch(api.client, path, 0, slow())
    assert response.status_code == 204, response.text
    assert tus.offset(api.client, path) == 800


def test_a_terminated_upload_is_unknown_and_its_bytes_are_gone(api: Api) -> None:
    path = tus.create(api.client, 10)
    tus.patch(api.client, path, 0, b"x")
    assert api.client.delete(path, headers=tus.VERSION).status_code == 204
    assert incoming(api) == []
    for response in (
        tus.patch(api.client, path, 1, b"x"),
        api.client.delete(path, headers=tus.VERSION),
        api.client.post("/models", params={"upload": path.rpartition("/")[2]}),
    ):
        problem_of(response, 404, "not_found")


def test_an_upload_that_is_not_whole_cannot_be_used(api: Api) -> None:
    path = tus.create(api.client, len(BODY))
    upload = path.rpartition("/")[2]
    problem_of(api.client.post("/models", params={"upload": upload}), 409, "upload_incomplete")
    tus.patch(api.client, path, 0, BODY[:-1])
    problem = problem_of(api.client.post("/datasets", params={"upload": upload}), 409, "upload_incomplete")
    assert f"{len(BODY) - 1} of {len(BODY)}" in problem["detail"]
    body = problem_of(api.client.post("/models", params={"upload": upload}, content=b"x"), 400, "bad_request")
    assert "no body" in body["detail"]


def test_an_empty_file_is_an_upload_and_no_network(api: Api) -> None:
    upload = tus.sent(api.client, b"")
    assert tus.offset(api.client, f"/uploads/{upload}") == 0
    problem_of(api.client.post("/models", params={"upload": upload}), 422, "empty_file")


def test_what_a_file_is_shows_when_it_is_used_and_it_stays_for_the_right_use(api: Api) -> None:
    upload = tus.sent(api.client, PICKLE)
    problem_of(api.client.post("/models", params={"upload": upload}), 422, "unsafe_pickle")
    upload = tus.sent(api.client, stories.an_npz(), Upload_Metadata="name ZGF0YS5ucHo=")
    refused = api.client.post("/models", params={"upload": upload, "name": "net.safetensors"})
    problem_of(refused, 422, "format_mismatch")
    assert api.client.get("/models").json()["data"] == []
    assert api.client.post("/datasets", params={"upload": upload}).json()["name"] == "data.npz"


def test_a_broken_connection_keeps_every_byte_that_came(api: Api) -> None:
    path = tus.create(api.client, len(BODY))
    at = 0
    for size in (1, 70_000, 1_500_000):
        with tus.half_a_part(api.base_url, path, at, len(BODY) - at, BODY[at : at + size]):
            time.sleep(0.3)  # what uvicorn has not handed on when the connection goes is lost
        at += size
        assert soon(lambda end=at: incoming(api)[0].stat().st_size == end, 10)  # type: ignore[misc]
        assert tus.offset(api.client, path) == at
    assert tus.patch(api.client, path, at, BODY[at:]).status_code == 204
    row = api.client.post("/models", params={"upload": path.rpartition("/")[2]}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_a_part_with_a_checksum_that_breaks_off_counts_nothing(api: Api) -> None:
    path = tus.create(api.client, len(BODY))
    right = f"Upload-Checksum: {tus.checksum('sha1', BODY)}"
    tus.half_a_part(api.base_url, path, 0, len(BODY), BODY[:2_000_000], right).close()
    assert soon(lambda: bool(incoming(api)) and incoming(api)[0].stat().st_size == 0)
    assert tus.offset(api.client, path) == 0
    response = tus.patch(api.client, path, 0, BODY, Upload_Checksum=tus.checksum("sha1", BODY))
    assert response.status_code == 204


def test_who_asks_anew_ends_a_sender_that_only_seems_to_be_there(api: Api) -> None:
    path = tus.create(api.client, len(BODY))
    with tus.half_a_part(api.base_url, path, 0, len(BODY), BODY[:1_200_000]) as silent:
        assert soon(lambda: bool(incoming(api)) and incoming(api)[0].stat().st_size > 0)
        started = time.monotonic()
        at = tus.offset(api.client, path)
        assert at == 1_200_000
        assert tus.patch(api.client, path, at, BODY[at:]).status_code == 204
        assert time.monotonic() - started < 1.5, "it waited for the silent sender's time-out of 2 s"
        assert silent.recv(65536).startswith(b"HTTP/1.1 423 ")
    row = api.client.post("/models", params={"upload": path.rpartition("/")[2]}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_many_senders_of_one_upload_never_mix_their_bytes(api: Api) -> None:
    path = tus.create(api.client, len(BODY))

    def send(number: int) -> int:
        with httpx.Client(base_url=api.base_url, timeout=60) as client:
            while True:
                head = client.head(path, headers=tus.VERSION)
                at = int(head.headers["upload-offset"])
                if at == len(BODY):
                    return number
                tus.patch(client, path, at, BODY[at : at + 200_000 + number])

    with ThreadPoolExecutor(6) as senders:
        assert sorted(senders.map(send, range(6))) == list(range(6))
    row = api.client.post("/models", params={"upload": path.rpartition("/")[2]}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_a_silent_and_a_trickling_sender_are_cut_and_may_go_on(serve: Callable[..., Api]) -> None:
    api = serve(body_idle_seconds=0.4, body_minimum_bytes_per_second=10_000)
    path = tus.create(api.client, len(BODY))
    with tus.half_a_part(api.base_url, path, 0, len(BODY), BODY[:5000]) as silent:
        assert silent.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert tus.offset(api.client, path) == 5000
    with tus.half_a_part(api.base_url, path, 5000, len(BODY) - 5000, b"") as slow:
        slow.settimeout(0.05)
        answer, at = b"", 5000
        while not answer:
            slow.sendall(BODY[at : at + 100])
            at += 100
            try:
                answer = slow.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")
    at = tus.offset(api.client, path)
    assert at > 5000
    assert tus.patch(api.client, path, at, BODY[at:]).status_code == 204
    row = api.client.post("/models", params={"upload": path.rpartition("/")[2]}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_a_full_disk_is_507_and_the_upload_goes_on_once_there_is_room(api: Api) -> None:
    folder: Any = api.service.transfers.incoming
    keep, folder.keep_free_bytes = folder.keep_free_bytes, 1 << 60
    problem_of(api.client.post("/uploads", headers={**tus.VERSION, "Upload-Length": "1"}), 507, "disk_full")
    folder.keep_free_bytes = keep
    tus.create(api.client, 1)


def test_what_arrived_counts_even_when_nobody_wrote_that_it_was_complete(api: Api) -> None:
    """The server died between the last byte and the row; or between the file's move and the row of the network."""
    upload = tus.create(api.client, len(BODY)).rpartition("/")[2]
    (api.service.transfers.incoming.folder / upload).write_bytes(BODY)
    assert tus.offset(api.client, f"/uploads/{upload}") == len(BODY)
    problem_of(tus.patch(api.client, f"/uploads/{upload}", len(BODY), b"x"), 403, "upload_complete")
    row = api.client.post("/models", params={"upload": upload}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()
    with api.service.database.transaction() as session:
        session.execute(update(ResumableUpload).values(network_id=None))
    again = api.client.post("/models", params={"upload": upload}).json()
    assert again["sha256"] == row["sha256"]
    assert again["id"] != row["id"]
    assert incoming(api) == []


def test_bytes_whose_checksum_a_killed_server_never_saw_do_not_count(api: Api) -> None:
    path = tus.create(api.client, len(BODY))
    upload = path.rpartition("/")[2]
    assert tus.patch(api.client, path, 0, BODY[:1000]).status_code == 204
    with api.service.database.transaction() as session:
        uploads.begin_part(session, upload, 1000, None)
    with (api.service.transfers.incoming.folder / upload).open("ab") as file:
        file.write(b"never checked")
    assert tus.offset(api.client, path) == 1000
    assert tus.patch(api.client, path, 1000, BODY[1000:]).status_code == 204
    row = api.client.post("/models", params={"upload": upload}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_the_running_hash_is_not_trusted_when_somebody_else_wrote(api: Api) -> None:
    path = tus.create(api.client, len(BODY))
    file = api.service.transfers.incoming.folder / path.rpartition("/")[2]
    assert tus.patch(api.client, path, 0, b"\0" * 1000).status_code == 204
    with file.open("r+b") as other_process:
        other_process.write(BODY[:1000])
    os.utime(file, ns=(1, 1))
    assert tus.patch(api.client, path, 1000, BODY[1000:]).status_code == 204
    row = api.client.post("/models", params={"upload": path.rpartition("/")[2]}).json()
    assert row["sha256"] == hashlib.sha256(BODY).hexdigest()


def test_another_process_that_holds_an_upload_makes_it_busy(api: Api, settings: Settings) -> None:
    path = tus.create(api.client, 10)
    held = api.service.transfers.incoming.hold(path.rpartition("/")[2])
    assert held is not None
    with held:
        response = tus.patch(api.client, path, 0, b"x")
        problem_of(response, 423, "upload_busy")
        assert response.headers["retry-after"] == "1"
    assert tus.patch(api.client, path, 0, b"x").status_code == 204
