"""The service, from Python: `Client().models.upload(…)`, `.datasets.upload(…)`, `.jobs.create(…)`."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from modelpress.job import Job
from modelpress.outcomes import ApiError, UploadRejected
from modelpress.transport import Progress, Transport
from modelpress.types import Json, Network, StoredData, Upload
from modelpress.weights_folder import as_one_file

DEFAULT_URL = "http://127.0.0.1:8000"
_POLL_SECONDS = 20
_Kind = TypeVar("_Kind", bound=Upload)


class Client:
    """A modelpress service.

    `url` and `key` default to the environment's MODELPRESS_URL and MODELPRESS_KEY, then to an open service on this
    machine. `patience` is how many seconds a service that stops answering is tried again for.
    """

    def __init__(self, url: str | None = None, key: str | None = None, *, patience: float = 30.0) -> None:
        url = url or os.environ.get("MODELPRESS_URL") or DEFAULT_URL
        self._transport = Transport(url, key or os.environ.get("MODELPRESS_KEY"), patience)
        self.models = Networks(self._transport, "/models", Network)
        self.datasets: Uploads[StoredData] = Uploads(self._transport, "/datasets", StoredData)
        self.jobs = Jobs(self._transport)
        self.webhooks = Webhooks(self._transport)

    def presets(self) -> list[Json]:
        """The named lists of steps."""
        return _entries(self._transport.json("GET", "/presets"))

    def capabilities(self) -> Json:
        """What this deployment can do: steps, formats, devices, limits, versions."""
        answer: Json = self._transport.json("GET", "/capabilities")
        return answer

    def schema(self) -> Json:
        """The JSON Schema of a job spec."""
        answer: Json = self._transport.json("GET", "/schema/job")
        return answer

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Uploads(Generic[_Kind]):
    """The networks, or the data sets, of one service."""

    def __init__(self, transport: Transport, path: str, kind: type[_Kind]) -> None:
        self._transport = transport
        self._path = path
        self._kind = kind

    def upload(
        self, path: str | Path, name: str | None = None, *, wait: bool = True, progress: Progress | None = None
    ) -> _Kind:
        """Send a file; unless `wait` is false, return once the service has read it.

        Raises ApiError when it is refused at once, UploadRejected when reading it fails.
        """
        return self._upload(path, {"name": name}, wait, progress)

    def _upload(self, path: str | Path, params: Json, wait: bool, progress: Progress | None) -> _Kind:
        file = Path(path)
        params = params | {"name": params["name"] or file.name}
        sent = self._kind.parse(self._transport.upload(self._path, file, params=params, progress=progress))
        return self.wait(sent.id) if wait else sent

    def wait(self, upload_id: str, timeout: float | None = None) -> _Kind:
        """Return the upload once it is ready. Raises UploadRejected, TimeoutError, ApiError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL_SECONDS if deadline is None else min(_POLL_SECONDS, deadline - time.monotonic())
            upload = self._kind.parse(
                self._transport.json("GET", f"{self._path}/{upload_id}", params={"wait": max(0, round(left))})
            )
            if upload.status == "rejected":
                raise UploadRejected(upload)
            if upload.status != "inspecting":
                return upload
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{upload_id} is still being inspected after {timeout:g} seconds.")

    def get(self, upload_id: str) -> _Kind:
        return self._kind.parse(self._transport.json("GET", f"{self._path}/{upload_id}"))

    def list(self, limit: int | None = None) -> Iterator[_Kind]:
        """Newest first, all of them unless `limit`."""
        return (self._kind.parse(entry) for entry in _pages(self._transport, self._path, {}, limit))

    def delete(self, upload_id: str) -> None:
        """Raises ApiError while a job uses it."""
        self._transport.json("DELETE", f"{self._path}/{upload_id}")


class Networks(Uploads[Network]):
    """The networks of one service."""

    def upload(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        input_shape: Sequence[str] = (),
        arch: str | None = None,
        num_classes: int | None = None,
        wait: bool = True,
        progress: Progress | None = None,
    ) -> Network:
        """Send a file; unless `wait` is false, return once the service has read it.

        `input_shape` has the sizes that an ONNX file or a named network leaves open, the batch first:
        `["1,3,224,224"]` for the only input, else `name:1,3,224,224` for each. `arch` is the network that a file of
        weights belongs to: `timm/resnet18`, with `num_classes` where it is not what the file's classifier has; or
        `transformers`, for a folder of `config.json` and safetensors, which may be given as it lies there.

        Raises ApiError when it is refused at once, UploadRejected when reading it fails.
        """
        reading = {"input_shape": list(input_shape) or None, "arch": arch, "num_classes": num_classes}
        with as_one_file(path) as file:
            return self._upload(file, {"name": name or Path(path).resolve().name, **reading}, wait, progress)


class Jobs:
    """The jobs of one service."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, idempotency_key: str | None = None, ready_within: float = 600.0, **spec: Any) -> Job:
        """Queue a job: `create(model=network, dataset=data, preset="balanced")`, or any spec of the API.

        `model` and `dataset` are ids or uploads; while one is still being inspected this waits, `ready_within`
        seconds at most. Sent with an Idempotency-Key, so that a broken connection never makes two jobs.
        Raises ApiError with every wrong field.
        """
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        deadline = time.monotonic() + ready_within
        while True:
            try:
                answer = self._transport.json("POST", "/jobs", body=_ids(spec), headers=headers, repeatable=True)
                return Job(self._transport, answer)
            except ApiError as error:
                later = error.code in ("not_ready", "idempotency_in_flight")
                if not later or time.monotonic() > deadline:
                    raise
                time.sleep(min(error.retry_after or 0.5, 2.0))

    def dry_run(self, **spec: Any) -> Json:
        """Check a spec without queueing it: defaults filled in, and what each step would leave."""
        answer: Json = self._transport.json(
            "POST", "/jobs", params={"dry_run": "true"}, body=_ids(spec), repeatable=True
        )
        return answer

    def get(self, job_id: str) -> Job:
        return Job(self._transport, self._transport.json("GET", f"/jobs/{job_id}"))

    def list(self, status: str | None = None, limit: int | None = None) -> Iterator[Job]:
        """Newest first, all of them unless `limit`."""
        entries = _pages(self._transport, "/jobs", {"status": status}, limit)
        return (Job(self._transport, entry) for entry in entries)

    def _of(self, job_id: str) -> Job:
        return Job(self._transport, {"id": job_id})

    def cancel(self, job_id: str) -> Job:
        return self._of(job_id).cancel()

    def clone(self, job_id: str, **overrides: Any) -> Job:
        return self._of(job_id).clone(**_ids(overrides))

    def delete(self, job_id: str) -> None:
        self._of(job_id).delete()


class Webhooks:
    """What the webhooks of one service's jobs are told, and how a receiver knows that it is true."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def secrets(self) -> list[Json]:
        """What messages are signed with, newest first. None before the first job with a webhook, or `rotate`."""
        return _entries(self._transport.json("GET", "/webhooks/secrets"))

    def rotate(self, overlap_hours: int = 24) -> Json:
        """Make a new secret; earlier ones sign beside it for `overlap_hours`."""
        answer: Json = self._transport.json("POST", "/webhooks/secrets", params={"overlap_hours": overlap_hours})
        return answer

    def messages(self, status: str | None = None, limit: int | None = None) -> Iterator[Json]:
        """Newest first, all of them unless `limit`."""
        return _pages(self._transport, "/webhooks/messages", {"status": status}, limit)


def _ids(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value.id if isinstance(value, Upload) else value for name, value in spec.items()}


def _entries(answer: Any) -> list[Json]:
    if isinstance(answer, dict):
        answer = answer.get("data", answer)
    if isinstance(answer, dict):
        return [{"name": name, **entry} for name, entry in answer.items()]
    return list(answer)


def _pages(transport: Transport, path: str, params: Json, limit: int | None) -> Iterator[Json]:
    after, left = None, limit
    while left is None or left > 0:
        page = 100 if left is None else min(left, 100)
        answer = transport.json("GET", path, params=params | {"limit": page, "after": after})
        entries = answer.get("data") or []
        yield from entries
        after = answer.get("next_cursor")
        left = None if left is None else left - len(entries)
        if not answer.get("has_more") or not after:
            return
