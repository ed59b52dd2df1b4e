"""What a tus client sends, by hand: every header as the protocol has it."""

from __future__ import annotations

import base64
import hashlib
import socket
from typing import Any

import httpx

VERSION = {"Tus-Resumable": "1.0.0"}
MEDIA_TYPE = "application/offset+octet-stream"
PART = {**VERSION, "Content-Type": MEDIA_TYPE}


def create(client: httpx.Client, length: int, **headers: str) -> str:
    """The path of a new upload."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = client.post("/uploads", headers={**VERSION, "Upload-Length": str(length), **named})
    assert response.status_code == 201, response.text
    return response.headers["location"]


def patch(client: httpx.Client, path: str, offset: int, body: Any, **headers: Any) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.patch(path, content=body, headers={**PART, "Upload-Offset": str(offset), **named})


def offset(client: httpx.Client, path: str) -> int:
    response = client.head(path, headers=VERSION)
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    return int(response.headers["upload-offset"])


def sent(client: httpx.Client, body: bytes, **headers: str) -> str:
    """The id of an upload that is whole."""
    path = create(client, len(body), **headers)
    if body:
        assert patch(client, path, 0, body).status_code == 204
    return path.rpartition("/")[2]


def checksum(algorithm: str, body: bytes) -> str:
    digest = hashlib.new(algorithm, body, usedforsecurity=False).digest()
    return f"{algorithm} {base64.b64encode(digest).decode()}"


def digest(body: bytes, algorithm: str = "sha-256") -> str:
    encoded = base64.b64encode(hashlib.new(algorithm.replace("-", ""), body).digest()).decode()
    return f"{algorithm}=:{encoded}:"


def half_a_part(base_url: str, path: str, at: int, declared: int, body: bytes, *more: str) -> socket.socket:
    """A sender whose connection is open while the rest does not come."""
    url = httpx.URL(base_url)
    connection = socket.create_connection((url.host, url.port or 80), timeout=30)
    lines = [
        f"PATCH {path} HTTP/1.1",
        f"Host: {url.host}:{url.port}",
        f"Content-Length: {declared}",
        f"Upload-Offset: {at}",
        *(f"{name}: {value}" for name, value in PART.items()),
        *more,
    ]
    connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    return connection
