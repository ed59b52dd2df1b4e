"""Resumable uploads: rows 3 and 9 to 16, as tus 1.0 has them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select, update

from models.database import now
from models.errors import Code
from models.tables import ResumableUpload
from tests.api import tus
from tests.api.stories import problem_of
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import Call, Check, Row, row


def part_cut_short(place: Place) -> None:
    path = tus.create(place.client, 10_000)
    key = f"Authorization: {place.client.headers['authorization']}"
    with tus.half_a_part(place.api.base_url, path, 0, 10_000, bytes(4000), key) as silent:
        assert silent.recv(65536).startswith(b"HTTP/1.1 408 ")
    assert tus.offset(place.client, path) == 4000
    assert tus.patch(place.client, path, 4000, bytes(6000)).status_code == 204


def nothing_reserved(place: Place) -> None:
    """As many uploads as may be open still are."""
    over = {**tus.VERSION, "Upload-Length": str(129 << 20)}
    for _ in range(2):
        answer = place.client.post("/uploads", headers=over)
        assert answer.headers["tus-max-size"] == str(128 << 20)
    with place.api.service.database.read() as session:
        assert session.scalar(select(func.count()).where(ResumableUpload.tenant == place.tenant)) == 0


def wrong_offset(place: Place) -> None:
    path = tus.create(place.client, 10)
    tus.patch(place.client, path, 0, b"1234")
    for at in (0, 3, 5, 10):
        response = tus.patch(place.client, path, at, b"x")
        problem_of(response, 409, "wrong_offset")
        assert response.headers["upload-offset"] == "4"
    assert tus.offset(place.client, path) == 4


def beyond_the_length(place: Place) -> None:
    path = tus.create(place.client, 3)
    problem_of(tus.patch(place.client, path, 0, b"12345"), 413, "too_large")
    problem_of(tus.patch(place.client, path, 0, b"123"), 410, "upload_invalid")


def after_completion(place: Place) -> None:
    path = tus.create(place.client, 3)
    tus.patch(place.client, path, 0, b"123")
    problem_of(tus.patch(place.client, path, 3, b"4"), 403, "upload_complete")


def expired(place: Place) -> None:
    path = tus.create(place.client, 3)
    with place.api.service.database.transaction() as session:
        row = ResumableUpload.id == path.rpartition("/")[2]
        session.execute(update(ResumableUpload).where(row).values(expires_at=now(session) - timedelta(seconds=1)))
    problem_of(tus.patch(place.client, path, 0, b"123"), 410, "upload_expired")


def of_another_tenant(place: Place) -> None:
    path = tus.create(place.client, 3)
    problem_of(tus.patch(place.other(), path, 0, b"123"), 404, "not_found")
    assert tus.offset(place.client, path) == 0


def another_length(place: Place) -> None:
    path = tus.create(place.client, 3)
    problem_of(tus.patch(place.client, path, 0, b"1", Upload_Length="4"), 400, "inconsistent_upload_length")


def other_bytes(header: str) -> Check:
    def check(place: Place) -> None:
        path = tus.create(place.client, 10)
        assert tus.patch(place.client, path, 0, b"12345").status_code == 204
        whole = b"12345other" if header == "Repr_Digest" else b"other"
        response = tus.patch(place.client, path, 5, b"67890", **{header: tus.digest(whole)})
        problem_of(response, 460, "checksum_mismatch")
        assert tus.offset(place.client, path) == (0 if header == "Repr_Digest" else 5)

    return check


ROWS: tuple[Row, ...] = (
    row(3, "Content-Length larger than the body", part_cut_short),
    row(
        9,
        "Upload-Length over the limit",
        Call(
            "POST /uploads",
            413,
            Code.TOO_LARGE,
            headers={**tus.VERSION, "Upload-Length": str(129 << 20)},
        ),
        nothing_reserved,
    ),
    row(10, "PATCH at a wrong offset", wrong_offset),
    row(11, "bytes beyond the declared length", beyond_the_length),
    row(12, "PATCH after completion", after_completion),
    row(13, "PATCH of an expired upload", expired),
    row(14, "PATCH of another tenant's upload", of_another_tenant),
    row(15, "length changed between requests", another_length),
    row(16, "digest of other bytes", other_bytes("Content_Digest"), other_bytes("Repr_Digest")),
)
