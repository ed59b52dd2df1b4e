"""One POST to one of the addresses it is given, and nowhere else, within a time for all of it.

The name is for the certificate and the `Host` header. No redirect is followed, no proxy of the environment is asked,
and of the answer no more is read than status and headers.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore

from models.webhook_urls import Target


class NoAnswer(Exception):
    """Nothing that counts as an HTTP answer came; the message says why, and nothing about who was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    status_code: int
    retry_after: str | None


def post(
    target: Target,
    addresses: Sequence[str],
    body: bytes,
    headers: Mapping[str, str],
    *,
    seconds: float,
    tls: ssl.SSLContext,
) -> Answer:
    """Raises `NoAnswer`."""
    deadline = time.monotonic() + seconds
    url = httpcore.URL(
        scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
    )
    sent = {"Host": target.netloc, "Connection": "close", "Content-Length": str(len(body)), **headers}
    try:
        with (
            httpcore.ConnectionPool(ssl_context=tls, network_backend=_Pinned(addresses, deadline)) as pool,
            pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
        ):
            headers_of_answer = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            return Answer(response.status, headers_of_answer.get(b"retry-after"))
    except httpcore.TimeoutException:
        raise NoAnswer(f"No answer within {seconds:g} seconds.") from None
    except httpcore.ConnectError as error:
        raise NoAnswer(_why_not_connected(error)) from None
    except (httpcore.NetworkError, httpcore.ProtocolError):
        raise NoAnswer("The connection ended before an answer, or what came was no HTTP.") from None


def _why_not_connected(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"The certificate is not accepted: {cause.verify_message}."
        if isinstance(cause, ssl.SSLError):
            return "No TLS connection came about."
        cause = cause.__cause__ or cause.__context__
    return "No connection came about."


class _Pinned(httpcore.NetworkBackend):
    """Connects to given addresses, whatever host it is asked for: each gets its share of the time that is left."""

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses, self._deadline = addresses, deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        for number, address in enumerate(self._addresses):
            share = _left(self._deadline) / (len(self._addresses) - number)
            try:
                stream = self._sockets.connect_tcp(address, port, share, local_address, socket_options)
                return _Timed(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if number + 1 == len(self._addresses):
                    raise
        raise httpcore.ConnectError("no address")


class _Timed(httpcore.NetworkStream):
    """A stream whose every operation ends by one deadline: a receiver that answers byte by byte gains nothing."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _Timed(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    """Seconds until then. Raises `httpcore.ReadTimeout` when there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise httpcore.ReadTimeout("the time is up")
    return seconds
