"""All files of a job in one tar: whole, in part, conditional, the same bytes again, never damaged."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile

import pytest

from models.blobs import FolderBlobs
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of

FILES = {"model.onnx": os.urandom(1_300_000), "report.json": b"{}", "empty.bin": b"", "naïve.bin": b"x" * 512}


@pytest.fixture
def url(api: Api) -> str:
    job_id = stories.submit(api)["id"]
    stories.succeed(api, stories.start(api.service.database), FILES)
    return f"/jobs/{job_id}/bundle"


def test_the_tar_holds_every_file_and_their_hashes_and_nothing_of_the_machine(api: Api, url: str) -> None:
    job = api.client.get(url.removesuffix("/bundle")).json()
    assert job["urls"]["bundle"] == url
    response = api.client.get(url)
    assert response.headers["content-type"] == "application/x-tar"
    assert response.headers["content-disposition"] == f'attachment; filename="{job["id"]}.tar"'
    assert response.headers["content-length"] == str(len(response.content))
    assert "repr-digest" not in response.headers
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
        assert {member.name.partition("/")[0] for member in members.values()} == {job["id"]}
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode, m.isreg()) for m in members.values()} == {
            (0, 0, 0, "", 0o644, True)
        }
        held = {name: archive.extractfile(member).read() for name, member in members.items()}  # type: ignore[union-attr]
    listed = json.loads(held.pop("artifacts.json"))
    assert held == FILES
    assert listed["job"] == job["id"]
    assert {row["name"]: row["sha256"] for row in listed["artifacts"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }


def test_the_same_files_give_the_same_bytes_and_a_download_goes_on_anywhere(api: Api, url: str) -> None:
    whole = api.client.get(url)
    etag, content = whole.headers["etag"], whole.content
    assert api.client.get(url).content == content
    head = api.client.head(url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))
    for start, stop in ((0, 1), (500, 1600), (700_000, len(content)), (len(content) - 3, len(content))):
        part = api.client.get(url, headers={"Range": f"bytes={start}-{stop - 1}", "If-Range": etag})
        assert (part.status_code, part.content) == (206, content[start:stop])
    stale = api.client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"stale"'})
    assert (stale.status_code, len(stale.content)) == (200, len(content))
    unchanged = api.client.get(url, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    problem_of(api.client.get(url, headers={"Range": f"bytes={len(content)}-"}), 416, "range_not_satisfiable")


def test_one_damaged_file_keeps_the_whole_from_being_given_out(api: Api, url: str) -> None:
    assert isinstance(api.service.blobs, FolderBlobs)
    path = api.service.blobs.path(hashlib.sha256(FILES["model.onnx"]).hexdigest())
    path.chmod(0o640)
    path.write_bytes(b"other" + FILES["model.onnx"][5:])
    assert "damaged" in problem_of(api.client.get(url), 410, "file_damaged")["detail"]


def test_a_job_without_files_has_no_bundle(api: Api) -> None:
    job_id = stories.submit(api)["id"]
    problem_of(api.client.get(f"/jobs/{job_id}/bundle"), 409, "not_ready")
    stories.fail(api.service.database, stories.start(api.service.database))
    problem_of(api.client.get(f"/jobs/{job_id}/bundle"), 404, "not_found")
    problem_of(api.client.get("/jobs/x/bundle"), 404, "not_found")
