"""Uploads and HTTP: rows 1 to 34, but for those of `resumable.py`."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import logging
import re
import socket
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx

from models.errors import Code
from models.settings import Settings
from tests.api import stories, tus
from tests.api.stories import problem_of
from tests.api.test_uploads import soon, stored
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import Call, Check, File, Row, row
from tests.engine.ingest.named.checkpoints import CHECKPOINTS

NAMES = {
    "../../etc/cron.d/x": "../../etc/cron.d/x",
    "/etc/passwd": "/etc/passwd",
    "C:\\Windows\\x": "C:\\Windows\\x",
    "a\x00b\r\nc": "a\ufffdb\ufffd\ufffdc",
    "n" * 5000: "n" * 255,
    "\u202etxt.a": "\ufffdtxt.a",
    "CON": "CON",
    "x.": "x.",
}
"""What is sent as a name, and what is shown."""


def connection(place: Place) -> socket.socket:
    url = httpx.URL(place.api.base_url)
    return socket.create_connection((url.host, url.port or 80), timeout=30)


def send(place: Place, head: str, body: bytes = b"", *, key: bool = True) -> socket.socket:
    """An open connection on which `head`, with a host and a key, and `body` were sent."""
    opened = connection(place)
    authorization = f"Authorization: {place.client.headers['authorization']}\r\n" if key else ""
    host = "" if "\r\nHost: " in head else "Host: localhost\r\n"
    opened.sendall(f"{head}\r\n{host}{authorization}\r\n".encode() + body)
    return opened


def answered(opened: socket.socket) -> bytes:
    """Everything that comes until the service closes the connection."""
    with closing(opened):
        received = b""
        while piece := opened.recv(65536):
            received += piece
        return received


def raw(status: int, head: str, body: bytes = b"", says: str = "") -> Check:
    """A request that no client library would send."""

    def check(place: Place) -> None:
        with send(place, head, body) as opened:
            received = opened.recv(65536)
        assert received.split(b" ")[1] == str(status).encode(), received
        assert says.encode() in received

    return check


def nothing_stored(place: Place, check: Callable[[], object]) -> None:
    settings: Settings = place.api.service.settings
    before = set(stored(settings))
    check()
    assert soon(lambda: set(stored(settings)) <= before)


def fifty_gigabytes_without_a_key(place: Place) -> None:
    def check() -> None:
        for authorization in ("", "\r\nAuthorization: Bearer mp_unknown"):
            head = f"POST /models HTTP/1.1\r\nContent-Length: 50000000000{authorization}"
            received = answered(send(place, head, b"PK\x03\x04", key=False))
            assert received.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" in received

    nothing_stored(place, check)


def body_behind_the_body(place: Place) -> None:
    head = "POST /jobs HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2"
    received = answered(send(place, head, b"{}, and more than was declared\r\n\r\n"))
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", received)
    assert statuses in ([b"422", b"400"], [b"400"])
    whole = stories.a_pt2(b"as declared")
    head = f"POST /models HTTP/1.1\r\nContent-Length: {len(whole)}"
    behind = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    received = answered(send(place, head, whole + behind))
    assert re.findall(rb"HTTP/1.1 (\d+) ", received) == [b"201", b"200"]
    [row] = place.client.get("/models").json()["data"]
    assert (row["size_bytes"], row["sha256"]) == (len(whole), hashlib.sha256(whole).hexdigest())


def endless(place: Place) -> None:
    def body() -> Iterator[bytes]:
        while True:
            yield stories.a_pt2(bytes(1 << 20))

    def check() -> None:
        response = place.client.post("/datasets", content=body())
        problem_of(response, 413, "too_large")
        assert response.headers["upload-limit"] == f"max-size={8 << 20}"

    nothing_stored(place, check)


def trickle(place: Place) -> None:
    def check() -> None:
        opened = send(place, "POST /models HTTP/1.1\r\nContent-Length: 1000000", stories.a_pt2())
        opened.settimeout(0.1)
        received, deadline = b"", time.monotonic() + 30
        while not received and time.monotonic() < deadline:
            opened.sendall(b"x")
            try:
                received = opened.recv(65536)
            except TimeoutError:
                continue
        opened.close()
        assert received.startswith(b"HTTP/1.1 408 ")

    nothing_stored(place, check)


def half_a_header(place: Place) -> None:
    """uvicorn waits; the proxy does not (what it does with these settings is in `tests/deploy`)."""
    configuration = (Path(__file__).parents[2] / "deploy" / "nginx.conf").read_text()
    timeout = re.search(r"^\s*client_header_timeout (\d+)s;", configuration, re.MULTILINE)
    assert timeout is not None
    assert int(timeout[1]) <= 10


def megabyte_of_header(place: Place) -> None:
    """The proxy takes 16 KiB a header and as many bytes of them as the service, which says the same without one."""
    configuration = (Path(__file__).parents[2] / "deploy" / "nginx.conf").read_text()
    assert "large_client_header_buffers 4 16k;" in configuration
    assert "error_page 494 =431 @headers;" in configuration
    problem_of(place.client.get("/jobs", headers={"X-Long": "x" * 1_000_000}), 431, "headers_too_large")


def names(place: Place) -> None:
    for number, (sent, shown) in enumerate(NAMES.items()):
        response = place.client.post("/models", params={"name": sent}, content=stories.a_pt2(bytes([number])))
        assert response.json()["name"] == shown
        [file] = [path for path in stored(place.api.service.settings) if path.name == response.json()["sha256"]]
        assert re.fullmatch(r"[0-9a-f]{64}", file.name)
    assert [found["name"] for found in place.client.get("/models").json()["data"]] == list(NAMES.values())[::-1]


def trailing_zip() -> bytes:
    return next(crafted for crafted in CHECKPOINTS if crafted.name == "trailing").make(Path())


def zipped_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("network.onnx"))
    return buffer.getvalue()


def artifact(place: Place) -> tuple[str, bytes]:
    content = bytes(range(256)) * 100
    job_id = stories.submit(place.api, place.client)["id"]
    stories.succeed(place.api, stories.start(place.api.service.database), {"model.onnx": content})
    return f"/jobs/{job_id}/artifacts/model.onnx", content


def many_ranges(place: Place) -> None:
    url, content = artifact(place)
    response = place.client.get(url, headers={"Range": "bytes=" + ",".join(["0-0"] * 10_000)})
    assert (response.status_code, response.content) == (200, content)
    beyond = place.client.get(url, headers={"Range": f"bytes={len(content)}-"})
    problem_of(beyond, 416, "range_not_satisfiable")


def stale_range(place: Place) -> None:
    url, content = artifact(place)
    response = place.client.get(url, headers={"Range": "bytes=0-9", "If-Range": '"stale"'})
    assert (response.status_code, response.content) == (200, content)


def full_disk(place: Place) -> None:
    blobs: Any = place.api.service.blobs
    incoming: Any = place.api.service.transfers.incoming
    kept = blobs.keep_free_bytes, incoming.keep_free_bytes
    length = {**tus.VERSION, "Upload-Length": "3"}

    def check() -> None:
        problem_of(place.client.post("/models", content=stories.a_pt2()), 507, "disk_full")
        problem_of(place.client.post("/uploads", headers=length), 507, "disk_full")

    try:
        blobs.keep_free_bytes = incoming.keep_free_bytes = 1 << 60
        nothing_stored(place, check)
    finally:
        blobs.keep_free_bytes, incoming.keep_free_bytes = kept
    assert place.client.post("/models", content=stories.a_pt2()).status_code == 201
    assert place.client.post("/uploads", headers=length).status_code == 201


def broken_off(place: Place) -> None:
    logger, lines = logging.getLogger("modelpress.access"), []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    path = tus.create(place.client, 10_000)
    key = f"Authorization: {place.client.headers['authorization']}"
    handler = Keep()
    logger.addHandler(handler)
    try:
        nothing_stored(
            place,
            lambda: send(place, "POST /models HTTP/1.1\r\nContent-Length: 900000", stories.a_pt2(bytes(9000))).close(),
        )
        tus.half_a_part(place.api.base_url, path, 0, 10_000, bytes(4000), key).close()
        assert soon(lambda: sum(" 499 bytes" in line for line in lines) == 2)
    finally:
        logger.removeHandler(handler)
    at = tus.offset(place.client, path)  # what the server had not handed on when the connection went is lost
    assert tus.patch(place.client, path, at, bytes(10_000 - at)).status_code == 204


def too_many_open(place: Place) -> None:
    assert Settings.model_fields["max_open_uploads"].default == 1000
    for _ in range(place.api.service.settings.max_open_uploads):
        tus.create(place.client, 1)
    response = place.client.post("/uploads", headers={**tus.VERSION, "Upload-Length": "1"})
    problem_of(response, 429, "too_many_uploads")
    tus.create(place.other(), 1)


FORM = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n'
TIMM = {"arch": "timm/resnet10t"}

ROWS: tuple[Row, ...] = (
    row(
        1,
        "multipart form",
        Call(
            "POST /models",
            415,
            Code.USE_RAW_BODY,
            content=FORM,
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        ),
    ),
    row(2, "50 GB without a key", fifty_gigabytes_without_a_key),
    row(4, "Content-Length smaller than the body", body_behind_the_body),
    row(
        5,
        "Content-Length and chunked",
        raw(400, "POST /jobs HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"),
    ),
    row(6, "two lengths that differ", raw(400, "POST /jobs HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6")),
    row(7, "negative length", raw(400, "POST /jobs HTTP/1.1\r\nContent-Length: -1")),
    row(8, "endless chunks", endless),
    row(
        17,
        "unknown digest algorithm alone",
        Call("POST /models", 400, Code.BAD_REQUEST, content=stories.a_pt2(), headers={"Repr-Digest": "crc32c=:AAAA:"}),
        Call("POST /models", 400, Code.BAD_REQUEST, content=stories.a_pt2(), headers={"Content-Digest": "md5=:AAAA:"}),
    ),
    row(
        18,
        "gzip as Content-Encoding",
        Call(
            "POST /models",
            415,
            Code.UNSUPPORTED_MEDIA_TYPE,
            content=gzip.compress(stories.a_pt2()),
            headers={"Content-Encoding": "gzip"},
        ),
    ),
    row(19, "one byte now and then", trickle),
    row(20, "header that does not end", half_a_header),
    row(21, "header of a megabyte", megabyte_of_header),
    row(
        22,
        "no bytes",
        File(b"", Code.EMPTY_FILE, "empty", at_once=True),
        File(b"", Code.EMPTY_FILE, "empty", at_once=True, kind="/datasets"),
    ),
    row(
        23,
        "one byte",
        File(b"x", Code.UNKNOWN_FORMAT, "too short", at_once=True),
        File(b"x", Code.UNKNOWN_FORMAT, "too short", at_once=True, kind="/datasets"),
    ),
    row(24, "names", names),
    row(
        25,
        "name that lies",
        File(
            stories.a_pt2(),
            Code.FORMAT_MISMATCH,
            "`.safetensors`, but the file is a zip archive",
            at_once=True,
            params={"name": "x.safetensors"},
        ),
        File(
            b"\x7fELF" + bytes(100),
            Code.FORMAT_MISMATCH,
            "`.pt2`, but the file is a program (ELF)",
            at_once=True,
            params={"name": "x.pt2"},
        ),
    ),
    row(
        26,
        "zip behind safetensors",
        File(lambda _: trailing_zip(), Code.NETWORK_REJECTED, "not fully covered", params=TIMM),
    ),
    row(
        27,
        "packed checkpoint",
        File(b"7z\xbc\xaf\x27\x1c" + bytes(100), Code.UNKNOWN_FORMAT, "7z", at_once=True, params=TIMM),
        File(gzip.compress(stories.a_pt2()), Code.UNKNOWN_FORMAT, "gzip", at_once=True, params=TIMM),
        File(bz2.compress(stories.a_pt2()), Code.UNKNOWN_FORMAT, "bzip2", at_once=True),
        File(zipped_tar(), Code.UNKNOWN_FORMAT, "gzip", at_once=True),
    ),
    row(28, "ten thousand ranges", many_ranges),
    row(29, "If-Range of an old version", stale_range),
    row(
        30,
        "Host or target that is none",
        raw(400, "GET /healthz HTTP/1.1\r\nHost: a/../admin"),
        raw(400, "GET @evil HTTP/1.1"),
        raw(400, "GET /healthz HTTP/1.1\r\nHost: a b"),
        raw(400, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil"),
    ),
    row(
        31,
        "ten thousand form fields",
        Call(
            "POST /jobs",
            415,
            Code.UNSUPPORTED_MEDIA_TYPE,
            content=b"&".join(b"f%d=1" % number for number in range(10_000)),
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ),
        File(b"&".join(b"f%d=1" % number for number in range(10_000)), Code.UNKNOWN_FORMAT, at_once=True),
    ),
    row(32, "full disk", full_disk),
    row(33, "client that goes away", broken_off),
    row(34, "a thousand open uploads", too_many_open),
)
"""Row 31 has no outcome of its own: forms are never parsed, so what is sent as one is refused as any other file."""
