"""Downloads: whole, in part, conditional, checked; and the report."""

from __future__ import annotations

import base64
import hashlib
import os

import pytest

from models.blobs import FolderBlobs
from models.report import Report
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of

CONTENT = os.urandom(2_500_000)


@pytest.fixture
def url(api: Api) -> str:
    job_id = stories.submit(api)["id"]
    stories.succeed(api, stories.start(api.service.database), {"model.onnx": CONTENT, "naïve.bin": b"small"})
    return f"/jobs/{job_id}/artifacts/model.onnx"


def test_files_are_listed_with_what_is_needed_to_fetch_and_check_them(api: Api, url: str) -> None:
    listed = api.client.get(url.rpartition("/")[0]).json()["data"]
    assert [file["name"] for file in listed] == ["model.onnx", "naïve.bin"]
    first = listed[0]
    assert (first["url"], first["size_bytes"], first["partial"]) == (url, len(CONTENT), False)
    assert first["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert api.client.get(listed[1]["url"]).content == b"small"


def test_a_download_carries_its_hash_as_etag_and_digest(api: Api, url: str) -> None:
    response = api.client.get(url)
    digest = hashlib.sha256(CONTENT)
    assert response.content == CONTENT
    assert response.headers["etag"] == f'"{digest.hexdigest()}"'
    assert response.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert response.headers["content-disposition"] == 'attachment; filename="model.onnx"'
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-length"] == str(len(CONTENT))
    head = api.client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert {name: head.headers[name] for name in ("etag", "content-length")} == {
        name: response.headers[name] for name in ("etag", "content-length")
    }


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000000-", 1_000_000, len(CONTENT)),
        ("bytes=-500", len(CONTENT) - 500, len(CONTENT)),
        ("bytes=5-99999999999", 5, len(CONTENT)),
    ],
)
def test_one_range_is_honoured(api: Api, url: str, asked: str, start: int, stop: int) -> None:
    response = api.client.get(url, headers={"Range": asked})
    assert response.status_code == 206
    assert response.content == CONTENT[start:stop]
    assert response.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=0-0,5-9", "bytes=" + "0-0," * 3000 + "0-0", "bytes=9-5", "lines=1-2", "x"])
def test_many_ranges_and_senseless_ones_get_the_whole_file(api: Api, url: str, asked: str) -> None:
    response = api.client.get(url, headers={"Range": asked})
    assert response.status_code == 200
    assert response.content == CONTENT


def test_a_range_beyond_the_end_is_416_with_the_size(api: Api, url: str) -> None:
    response = api.client.get(url, headers={"Range": f"bytes={len(CONTENT)}-"})
    problem_of(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == f"bytes */{len(CONTENT)}"


def test_a_range_is_only_for_the_version_named_in_if_range(api: Api, url: str) -> None:
    etag = api.client.head(url).headers["etag"]
    same = api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": etag})
    assert (same.status_code, same.content) == (206, CONTENT[:10])
    stale = api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"stale"'})
    assert (stale.status_code, len(stale.content)) == (200, len(CONTENT))
    unchanged = api.client.get(url, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_a_damaged_file_is_never_given_out(api: Api, url: str) -> None:
    assert api.client.get(url).status_code == 200
    assert isinstance(api.service.blobs, FolderBlobs)
    path = api.service.blobs.path(hashlib.sha256(CONTENT).hexdigest())
    path.chmod(0o640)
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(bytes([CONTENT[1000] ^ 1]))
    for headers in ({}, {"Range": "bytes=0-9"}):
        assert "damaged" in problem_of(api.client.get(url, headers=headers), 410, "file_damaged")["detail"]
    path.unlink()
    assert "lost" in problem_of(api.client.get(url), 410, "file_damaged")["detail"]


def test_files_and_report_of_a_job_that_has_not_ended_are_not_ready(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    for path in ("artifacts/model.onnx", "report"):
        response = api.client.get(f"/jobs/{job_id}/{path}")
        assert problem_of(response, 409, "not_ready")["where"] == "queued"
        assert int(response.headers["retry-after"]) >= 1
    assert api.client.get(f"/jobs/{job_id}/artifacts").json() == {"data": []}
    stories.fail(api.service.database, stories.start(api.service.database))
    problem_of(api.client.get(f"/jobs/{job_id}/report"), 404, "not_found")
    problem_of(api.client.get(f"/jobs/{job_id}/artifacts/model.onnx"), 404, "not_found")


@pytest.mark.parametrize("name", ["other.onnx", "..%2F..%2Fetc%2Fpasswd", "%00", "model.onnx%2F.."])
def test_a_file_the_job_does_not_have_is_not_found(api: Api, url: str, name: str) -> None:
    problem_of(api.client.get(f"{url.rpartition('/')[0]}/{name}"), 404, "not_found")


def test_the_report_is_given_as_it_was_stored(api: Api, url: str) -> None:
    response = api.client.get(url.replace("artifacts/model.onnx", "report"))
    assert Report.model_validate(response.json()) == stories.a_report()
