"""A job, and everything one can do with it."""

from __future__ import annotations

import hashlib
import json
import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx

from modelpress.event_stream import parse_stream
from modelpress.outcomes import ApiError, DownloadError
from modelpress.transport import Transport
from modelpress.types import Artifact, Event, JobRecord, Json

MANIFEST = "artifacts.json"
"""Beside downloaded files: which job they are of, and the size and SHA-256 of each."""

_POLL_SECONDS = 20
_STREAM_SILENCE_SECONDS = 60.0


class _NoStream(Exception):
    """Something on the way to the service does not let event streams through."""


class Job(JobRecord):
    """A `JobRecord` that can be refreshed, watched, cancelled and fetched."""

    def __init__(self, transport: Transport, answer: Json) -> None:
        super().__init__()
        self._transport = transport
        self.update(answer)

    @property
    def _path(self) -> str:
        return f"/jobs/{self.id}"

    def refresh(self, wait: float = 0) -> Job:
        """Ask for the newest state; with `wait`, for at most so many seconds until something changes."""
        self.update(self._transport.json("GET", self._path, params={"wait": math.ceil(wait) if wait > 0 else None}))
        return self

    def wait(self, timeout: float | None = None, on_event: Callable[[Event], None] | None = None) -> Job:
        """Return when the job has finished, however it ended: look at `status` and `error`.

        `on_event` is called with every event from the first one on, also with types this client does not know.
        Raises TimeoutError after `timeout` seconds (the job goes on), ApiError when the service stays away.
        """
        for event in self.follow(timeout=timeout):
            if on_event:
                on_event(event)
        return self

    def events(self, after: int = 0) -> list[Event]:
        """What has happened since event `after`."""
        return list(self._listed(after))

    def follow(self, after: int = 0, timeout: float | None = None) -> Iterator[Event]:
        """Events as they happen, each once and in order, until the job has finished; survives broken connections.

        Raises TimeoutError after `timeout` seconds, ApiError when the service stays away.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        heard = time.monotonic()
        streams = True
        while True:
            try:
                streaming = streams and deadline - time.monotonic() > _POLL_SECONDS
                for event in self._streamed(after, deadline) if streaming else self._polled(after, deadline):
                    heard = time.monotonic()
                    after = max(after, event.id)
                    ended = self._take(event)
                    yield event
                    if ended:
                        return
                self.refresh()
                heard = time.monotonic()
                if self.is_finished:
                    yield from self._listed(after)
                    return
            except _NoStream:
                streams = False
            except ApiError as error:
                if error.status not in (0, 429, 502, 503, 504) or time.monotonic() - heard > self._transport.patience:
                    raise
                time.sleep(min(error.retry_after or 0.5, max(0.0, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                raise TimeoutError(f"Job {self.id} is still {self.status} after {timeout:g} seconds; it goes on.")

    def _streamed(self, after: int, deadline: float) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if after:
            headers["Last-Event-ID"] = str(after)

        def lines(response: httpx.Response) -> Iterator[str]:
            for line in response.iter_lines():
                yield line
                if deadline - time.monotonic() <= _POLL_SECONDS:
                    return

        try:
            with self._transport.stream(
                f"{self._path}/events", headers=headers, read_seconds=_STREAM_SILENCE_SECONDS
            ) as response:
                if response.status_code == httpx.codes.NO_CONTENT:
                    return
                if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                    raise _NoStream
                yield from parse_stream(lines(response))
        except ApiError as error:
            if error.status == httpx.codes.NOT_ACCEPTABLE:
                raise _NoStream from error
            raise

    def _polled(self, after: int, deadline: float) -> Iterator[Event]:
        events = self._listed(after)
        first = next(events, None)
        if first is None:
            self.refresh(wait=min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            events = self._listed(after)
        else:
            yield first
        yield from events

    def _listed(self, after: int) -> Iterator[Event]:
        while True:
            answer = self._transport.json("GET", f"{self._path}/events", params={"after": after or None})
            page: list[Json] = answer.get("data") or []
            for item in page:
                event = Event.parse(item)
                after = max(after, event.id)
                yield event
            if not page or not answer.get("has_more"):
                return

    def _take(self, event: Event) -> bool:
        """Bring the job up to an event; True when that is the last one, which carries the whole job."""
        data = event.data
        if event.type == "status":
            if isinstance(data.get("job"), dict):
                self.update(data["job"])
                return self.is_finished
            self.status = str(data.get("status") or self.status)
        elif event.type == "phase":
            self.phase = data.get("phase")
            self.progress = self.progress | {k: data.get(k) for k in ("step_index", "step_count")}
        elif event.type == "progress":
            self.progress = self.progress | {k: v for k, v in data.items() if k != "type"}
        return False

    def log(self) -> str:
        """The engine's log so far, also of failed jobs."""
        return self._transport.text(f"{self._path}/log")

    def report(self) -> Json:
        """The numbers before and after, each measured on the file it is about."""
        report: Json = self._transport.json("GET", f"{self._path}/report")
        return report

    def artifacts(self) -> list[Artifact]:
        """The files there are."""
        answer = self._transport.json("GET", f"{self._path}/artifacts")
        return [Artifact.parse(item) for item in answer.get("data") or []]

    def download(
        self,
        folder: str | Path,
        names: Iterable[str] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> Path:
        """Fetch every file (or those named) into `folder`, each checked against its SHA-256, and a list of them.

        A file that is already there, whole, is not fetched again. `progress` is called with (name, bytes, of bytes).
        Raises DownloadError, ApiError.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = self._chosen(names)
        for artifact in chosen:
            target = folder / artifact.name
            if not (target.is_file() and sha256_of(target) == artifact.sha256):

                def one(done: int, size: int, name: str = artifact.name) -> None:
                    if progress:
                        progress(name, done, size)

                path = f"{self._path}/artifacts/{artifact.name}"
                self._transport.download(path, target, sha256=artifact.sha256, progress=one)
        listed = [{k: v for k, v in artifact.raw.items() if k != "url"} for artifact in chosen]
        (folder / MANIFEST).write_text(json.dumps({"job": self.id, "artifacts": listed}, indent=1) + "\n")
        return folder

    def _chosen(self, names: Iterable[str] | None) -> list[Artifact]:
        there = {artifact.name: artifact for artifact in self.artifacts()}
        for name in there:
            if name in (".", "..", MANIFEST) or "/" in name or "\\" in name or "\0" in name:
                raise DownloadError(f"The service offers a file under the name {name!r}, which is not a file's name.")
        if names is None:
            if not there:
                raise DownloadError(f"Job {self.id} ({self.status}) has no files.")
            return list(there.values())
        wanted = list(names)
        if missing := [name for name in wanted if name not in there]:
            raise DownloadError(f"No file {', '.join(missing)}; there is {', '.join(there) or 'none'}.")
        return [there[name] for name in wanted]

    def cancel(self) -> Job:
        """Ask for the job to stop; `wait()` returns once it has. Raises ApiError when it has finished already."""
        self.update(self._transport.json("POST", f"{self._path}/cancel", repeatable=True))
        return self

    def clone(self, **overrides: Any) -> Job:
        """Queue the same job again with some fields changed; finished steps it shares are not repeated."""
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        answer = self._transport.json("POST", f"{self._path}/clone", body=overrides, headers=headers, repeatable=True)
        return Job(self._transport, answer)

    def webhook_message(self) -> Json:
        """What its webhook was told about its end, with every attempt. Raises ApiError before the end."""
        answer: Json = self._transport.json("GET", f"{self._path}/webhook")
        return answer

    def redeliver_webhook(self) -> Json:
        """Have its webhook told again, under the same id. Raises ApiError before the end."""
        answer: Json = self._transport.json("POST", f"{self._path}/webhook/redeliver", repeatable=True)
        return answer

    def delete(self) -> None:
        """Remove the job, its log and its files. Raises ApiError while it is queued or running."""
        self._transport.json("DELETE", self._path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
