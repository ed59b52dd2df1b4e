"""What surrounds every request: an id, one log line, a sane Host, and an answer that a busy sender can still read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.bodies import Disconnected
from api.deps import Service
from api.errors import problem_response
from models import logs
from models.errors import Code

logger = logging.getLogger("modelpress.access")

_REQUEST_ID = re.compile(rb"(?!mp_)[A-Za-z0-9_.:-]{1,128}")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
MAX_HEADER_BYTES = 64 << 10
"""What the proxy of docker-compose.yml takes, for those who run without one: the server's parser has no limit."""
LINGER_SECONDS = 2.0
LINGER_BYTES = 16 << 20
CLIENT_CLOSED_REQUEST = 499
"""In the log only: the client went away before the answer."""


class AccessMiddleware:
    """Pure ASGI, outermost. `X-Request-Id` is taken from the request when it is well formed, made otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        with logs.about(request_id=exchange.request_id):
            await self._answer(scope, exchange)

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            if exchange.is_malformed():
                await exchange.refuse(Code.BAD_REQUEST, "The Host header or the target is malformed.")
            elif exchange.has_long_headers():
                await exchange.refuse(Code.HEADERS_TOO_LARGE, f"The headers have more than {MAX_HEADER_BYTES} bytes.")
            else:
                await self.app(scope, exchange.receive, exchange.send)
        except Disconnected:
            exchange.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if exchange.started or task is None or not task.cancelling():
                raise
            # The server stops, and gives nobody any more time. What a thread has begun is done all the same.
            message = "The service was stopped before this request was answered."
            code = Code.UNAVAILABLE if exchange.may_be_repeated() else Code.INTERNAL
            await exchange.refuse(code, message)
        except Exception:
            logger.exception("a request failed")
            if exchange.started:
                raise
            await exchange.refuse(Code.INTERNAL, "The request failed on our side; the log has it under request_id.")
        finally:
            exchange.log()


class _Exchange:
    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        headers = dict(scope["headers"])
        self._hosts = [value for name, value in scope["headers"] if name == b"host"]
        given = headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = self.request_id
        self._began = time.monotonic()
        self._expects_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        self._received_all = not self._expects_body
        self._has_key = b"idempotency-key" in headers
        self._awaits_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        self._disconnected = False
        self._bytes_in = self._bytes_out = 0
        self.started = False
        self.status = 0

    def is_malformed(self) -> bool:
        return not self._scope["path"].startswith("/") or len(self._hosts) != 1 or not _HOST.fullmatch(self._hosts[0])

    def has_long_headers(self) -> bool:
        target = len(self._scope["raw_path"]) + len(self._scope["query_string"])
        return target + sum(len(name) + len(value) for name, value in self._scope["headers"]) > MAX_HEADER_BYTES

    def may_be_repeated(self) -> bool:
        """Whether sending it again changes nothing, or nothing twice."""
        is_safe = self._scope["method"] in ("GET", "HEAD", "OPTIONS", "DELETE")
        return is_safe or self._has_key or not self._received_all

    async def refuse(self, code: Code, detail: str) -> None:
        response = problem_response(Request(self._scope), code, detail)
        await response(self._scope, self.receive, self.send)

    async def receive(self) -> Message:
        message = await self._receive()
        self._awaits_continue = False
        if message["type"] == "http.disconnect":
            self._disconnected = True
            self._received_all = True
            return message
        self._bytes_in += len(message.get("body", b""))
        if not message.get("more_body", False):
            self._received_all = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message = {**message, "headers": [*message["headers"], *self._extra_headers(message)]}
        elif message["type"] == "http.response.body":
            self._bytes_out += len(message.get("body", b""))
            if not message.get("more_body", False) and not self._received_all:
                await self._send({**message, "more_body": True})
                await self._linger()
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _extra_headers(self, start: Message) -> list[tuple[bytes, bytes]]:
        extra = [(b"x-request-id", self.request_id.encode()), (b"x-content-type-options", b"nosniff")]
        for name, value in self._scope["state"].get("headers", {}).items():
            extra.append((name.lower().encode(), value.encode()))
        names = {name.lower() for name, _ in start["headers"]}
        if b"cache-control" not in names:
            extra.append((b"cache-control", b"no-store"))
        if not self._received_all and b"connection" not in names:
            extra.append((b"connection", b"close"))
        return extra

    async def _linger(self) -> None:
        """Closing a socket with unread bytes resets it, and the sender never sees the answer: read a little first."""
        if self._awaits_continue:
            return
        dropped = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._received_all and dropped < LINGER_BYTES:
                    dropped += len((await self.receive()).get("body", b""))

    def log(self) -> None:
        status = self.status or CLIENT_CLOSED_REQUEST
        fields: dict[str, Any] = {
            "method": self._scope["method"],
            "path": json.dumps(self._scope["path"])[1:-1],
            "status": status,
            "bytes": self._bytes_out,
            "seconds": round(time.monotonic() - self._began, 6),
        }
        logger.log(
            logging.WARNING if status >= 500 else logging.INFO,
            "%s %s %s bytes=%d seconds=%.3f",
            *fields.values(),
            extra={logs.FIELDS: fields},
        )
        service: Service | None = getattr(self._scope["app"].state, "service", None)
        if service is not None:
            route = getattr(self._scope.get("route"), "path", "none")
            service.metrics.request(
                self._scope["method"], route, status, fields["seconds"], self._bytes_in, self._bytes_out
            )
