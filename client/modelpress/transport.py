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
RESUMABLE_BYTES = 16 << 20
"""Files of this size and more are sent so that a broken connection costs nothing."""

_TUS = {"Tus-Resumable": "1.0.0"}
_GO_ON = (408, 409, 423, 429, 460, 502, 503, 504)
"""What a part may be answered with that another look at the offset can mend."""
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)


class _Source:
    """A file to send: read from any offset on, hashed once."""

    def __init__(self, file: Path, progress: Progress | None) -> None:
        self.size = file.stat().st_size
        self._file, self._progress = file, progress
        self._hashed, self._digest = 0, hashlib.sha256()

    def pieces(self, offset: int) -> Iterator[bytes]:
        with self._file.open("rb") as source:
            source.seek(offset)
            while piece := source.read(CHUNK_BYTES):
                new = piece[max(0, self._hashed - offset) :]
                self._digest.update(new)
                self._hashed += len(new)
                yield piece
                offset += len(piece)
                if self._progress:
                    self._progress(offset, self.size)

    def sha256(self) -> str:
        return self._digest.hexdigest()


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
        """Send a file in pieces, and read the JSON answer.

        A big one goes on where the connection broke; a small one is sent again only where the service kept nothing.
        Raises ApiError, also when the service's SHA-256 of what arrived is not that of what was sent.
        """
        source = _Source(file, progress)
        if source.size < RESUMABLE_BYTES:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(source.size)}
            response = self._until_answered(
                lambda: self._http.post(path, params=_given(params), content=source.pieces(0), headers=headers), False
            )
        else:
            used = {**_given(params), "upload": self._send_resumably(source)}
            response = self._until_answered(lambda: self._http.post(path, params=used, timeout=_LONG), True)
        answer = response.json()
        if answer.get("sha256") not in (None, source.sha256()):
            raise ApiError("upload_damaged", 0, f"{file.name} changed on its way, or while it was read: send it again.")
        return answer

    def _send_resumably(self, source: _Source) -> str:
        """Upload by tus 1.0 (tus.io/protocols/resumable-upload); returns the upload's id. Raises ApiError."""
        begin = {**_TUS, "Upload-Length": str(source.size)}
        created = self._until_answered(lambda: self._http.post("/uploads", headers=begin), True)
        upload_id = created.headers["Location"].rpartition("/")[2]
        url, offset, delay = f"/uploads/{upload_id}", 0, 0.1
        deadline = time.monotonic() + self.patience
        while offset < source.size:
            part = {**_TUS, "Upload-Offset": str(offset), "Content-Length": str(source.size - offset)}
            part["Content-Type"] = "application/offset+octet-stream"
            before, problem = offset, None
            try:
                response = self._http.patch(url, content=source.pieces(offset), headers=part, timeout=_LONG)
                if response.is_success:
                    offset = int(response.headers["Upload-Offset"])
                    continue
                problem = problem_of(response)
                if problem.status not in _GO_ON:
                    raise problem
            except _BROKEN as broken:
                problem = self._unreachable(broken)
            head = self._until_answered(lambda: self._http.head(url, headers=_TUS), True)
            offset = int(head.headers["Upload-Offset"])
            if offset > before:
                deadline, delay = time.monotonic() + self.patience, 0.1
                continue
            if time.monotonic() + delay > deadline:
                raise problem
            time.sleep(delay)
            delay = min(delay * 2, 5.0)
        return upload_id

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
                if error.status not in (0, 429, 503) or (done and not tag) or time.monotonic() > deadline:
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
                passing = response.status_code in (423, 429, 503) or (again and response.status_code in (502, 504))
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


_LONG = _timeouts(read=600.0)
"""For answers that come once gigabytes are synced, or read and hashed again."""
