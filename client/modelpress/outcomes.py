"""Everything that can go wrong, as exceptions whose text is for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelpress.job import Job
    from modelpress.types import Upload


class ModelpressError(Exception):
    """What this package raises; its text says what is wrong and what to change."""


class ApiError(ModelpressError):
    """The service refused a request (RFC 9457 problem+json) or could not be reached (`status` is 0).

    `errors` point at the wrong fields: `{"pointer": "/steps/0/amount", "message": …, "allowed": […]}`.
    """

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        errors: list[dict[str, Any]] | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        self.code = code
        self.status = status
        self.detail = detail
        self.errors = errors or []
        self.request_id = request_id
        self.retry_after = retry_after
        self.hint = hint
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """The problem for people: the detail, each wrong field, the remedy, the request's id."""
        lines = [self.detail]
        for error in self.errors:
            allowed = f" (allowed: {', '.join(map(str, error['allowed']))})" if error.get("allowed") else ""
            said = f"{error.get('pointer') or '/'}: {error.get('message', '')}"
            if said not in self.detail:
                lines.append(f"  {said}{allowed}")
            elif allowed:
                lines.append(f" {allowed}")
        if self.hint and self.hint not in self.detail:
            lines.append(self.hint)
        if self.status >= 500 and self.request_id:
            lines.append(f"Request {self.request_id}")
        return lines


class UploadRejected(ModelpressError):
    """The service read the file and will not use it; `upload.error` has the code."""

    def __init__(self, upload: Upload) -> None:
        self.upload = upload
        super().__init__(f"{upload.name or upload.id} was rejected. {describe_error(upload.error)}")


class JobFailed(ModelpressError):
    """`compress` ended in another status than `succeeded`; `job` has the error, the log and what was finished."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(f"Job {job.id} {job.status}. {describe_error(job.error)}".strip())


class DownloadError(ModelpressError):
    """The bytes that came are not the bytes that were promised; nothing was kept."""


class PrepareError(ModelpressError):
    """The network or the data cannot be written as the service reads them; the text says where and what to change."""


def describe_error(error: dict[str, Any] | None) -> str:
    """One sentence or two from the `error` of a job or an upload; empty without one."""
    if not error:
        return ""
    text = str(error.get("message") or error.get("code") or "")
    where = error.get("where")
    if where and str(where) not in text:
        text = f"{text} ({where})"
    hint = error.get("hint")
    return f"{text}\n{hint}" if hint and hint not in text else text
