"""HTTP as the client needs it: problems become `ApiError`, calls that may be repeated are, bytes are hashed."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from modelpress.outcomes import ApiError, DownloadError

CHUNK_BYTES = 1 << 20
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

_FIRST_CONTACT_SECONDS = 3.0
_BROKEN = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)


class Transport:
    """One service, one key. `patience` is how many seconds a service that was there is tried again for."""

    def __init__(self, url: str, key: str | None, patience: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self.patience = patience
        self._reached = False
        headers = {"User-Agent": "modelpress-python", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # A proxy of the environment cannot reach this machine's own loopback.
        beside = httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=_timeouts(read=90.0), trust_env=not beside
        )

    def close(self) -> None:
        self._http.close()

    def json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
    ) -> Any:
        """Send, and read a JSON answer. By default every method but POST is sent again after a broken connection.

        Raises ApiError.
        """
        again = method != "POST" if repeatable is None else repeatable

        def send() -> httpx.Response:
            return self._http.request(method, path, params=_given(params), json=body, headers=headers)

        response = self._until_answered(send, again)
        return response.json() if response.content else None

    def text(self, path: str) -> str:
        """The body of a GET as text. Raises ApiError."""
        return self._until_answered(lambda: self._http.get(path, headers={"Accept": "text/plain"}), True).text

    def upload(
        self, path: str, file: Path, *, params: Mapping[str, Any] | None = None, progress: Progress | None = None
    ) -> Any:
        """POST a file as the raw body, in pieces, and read the JSON answer.

        Sent again only where the service kept nothing. Raises ApiError, also when the service's SHA-256 of what
        arrived is not that of what was sent.
        """
        size = file.stat().st_size
        sent = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            done = 0
            with file.open("rb") as source:
                while piece := source.read(CHUNK_BYTES):
                    sent.update(piece)
                    yield piece
                    done += len(piece)
                    if progress:
                        progress(done, size)

        def send() -> httpx.Response:
            nonlocal sent
            sent = hashlib.sha256()
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            return self._http.post(path, params=_given(params), content=pieces(), headers=headers)

        answer = self._until_answered(send, False).json()
        if answer.get("sha256") not in (None, sent.hexdigest()):
            raise ApiError("upload_damaged", 0, f"{file.name} changed on its way, or while it was read: send it again.")
        return answer

    def download(self, path: str, target: Path, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
        """GET bytes into `target`: written beside it, hashed, and moved there only when all is well.

        A broken connection goes on where it broke. Raises ApiError; DownloadError when the hash is another one.
        """
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as sink:
                digest = self._receive(path, sink.write, progress)
            if sha256 is not None and digest != sha256:
                raise DownloadError(
                    f"{target.name} arrived damaged (SHA-256 {digest}, not {sha256}) and was not kept: fetch it again."
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def _receive(self, path: str, write: Callable[[bytes], object], progress: Progress | None) -> str:
        hashed, done, tag = hashlib.sha256(), 0, None
        deadline = time.monotonic() + self.patience
        while True:
            headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
            if done and tag:
                headers |= {"Range": f"bytes={done}-", "If-Range": tag}
            try:
                with self.stream(path, headers=headers, read_seconds=60.0) as response:
                    if done and response.status_code != httpx.codes.PARTIAL_CONTENT:
                        raise DownloadError("The file changed while it was fetched: fetch it again.")
                    tag = response.headers.get("ETag")
                    size = done + int(response.headers.get("Content-Length", 0))
                    for piece in response.iter_bytes(CHUNK_BYTES):
                        write(piece)
                        hashed.update(piece)
                        done += len(piece)
                        if progress:
                            progress(done, max(size, done))
                return hashed.hexdigest()
            except ApiError as error:
                if error.status not in (0, 503) or (done and not tag) or time.monotonic() > deadline:
                    raise
                time.sleep(error.retry_after or 0.5)

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], params: Mapping[str, Any] | None = None, read_seconds: float
    ) -> Iterator[httpx.Response]:
        """A GET whose body is read as it comes; not repeated here. Raises ApiError, with status 0 when it breaks."""
        timeout = _timeouts(read=read_seconds)
        try:
            with self._http.stream("GET", path, headers=headers, params=_given(params), timeout=timeout) as response:
                self._reached = True
                if response.is_error:
                    response.read()
                    raise problem_of(response)
                yield response
        except _BROKEN as broken:
            raise self._unreachable(broken) from broken

    def _until_answered(self, send: Callable[[], httpx.Response], again: bool) -> httpx.Response:
        deadline = time.monotonic() + (self.patience if self._reached else min(self.patience, _FIRST_CONTACT_SECONDS))
        delay = 0.1
        while True:
            try:
                response = send()
            except _BROKEN as broken:
                if not (again or isinstance(broken, _NEVER_SENT)) or time.monotonic() + delay > deadline:
                    raise self._unreachable(broken) from broken
                pause = delay
            else:
                self._reached = True
                if not response.is_error:
                    return response
                passing = response.status_code == 503 or (again and response.status_code in (502, 504))
                problem = problem_of(response)
                pause = problem.retry_after or delay
                if not passing or time.monotonic() + pause > deadline:
                    raise problem
            time.sleep(pause * random.uniform(1.0, 1.25))  # noqa: S311  (spreads clients out; nothing secret)
            delay = min(delay * 2, 5.0)

    def _unreachable(self, broken: Exception) -> ApiError:
        reason = str(broken) or type(broken).__name__
        return ApiError(
            "unreachable",
            0,
            f"Cannot reach {self.url}: {reason}.",
            hint="Start the service with `make serve`, or say where it is: MODELPRESS_URL or --url.",
        )


def problem_of(response: httpx.Response) -> ApiError:
    """Read a problem+json answer; any other body still gives an error with its status and first words."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": f"{response.status_code} {response.reason_phrase}: {response.text[:200]}".rstrip(": ")}
    after = response.headers.get("Retry-After", "")
    errors = problem.get("errors")
    return ApiError(
        code=str(problem.get("code") or "http_error"),
        status=response.status_code,
        detail=str(problem.get("detail") or problem.get("title") or response.reason_phrase),
        errors=errors if isinstance(errors, list) else [],
        request_id=problem.get("request_id") or response.headers.get("X-Request-Id"),
        retry_after=float(after) if after.isdigit() else None,
        hint=problem.get("hint"),
    )


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _timeouts(read: float) -> httpx.Timeout:
    return httpx.Timeout(60.0, connect=10.0, read=read)
