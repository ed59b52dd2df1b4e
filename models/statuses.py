"""The statuses of jobs and uploads, and the phases inside a running job."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        return self in TERMINAL


TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset({JobStatus.QUEUED, JobStatus.CANCELLING, JobStatus.SUCCEEDED, JobStatus.FAILED}),
    JobStatus.CANCELLING: frozenset({JobStatus.CANCELLED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}
"""Which status may follow which; `transitions.py` has one guarded statement for each edge."""


class UploadStatus(StrEnum):
    """Of a network or a dataset."""

    INSPECTING = "inspecting"
    READY = "ready"
    REJECTED = "rejected"


class TransferStatus(StrEnum):
    """Of a resumable upload: the bytes on their way, before anybody looks at them."""

    OPEN = "open"
    COMPLETE = "complete"
    INVALID = "invalid"
    EXPIRED = "expired"


class MessageStatus(StrEnum):
    """Of the message to a job's webhook."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    DISABLED = "disabled"
    """Not sent, because an earlier message to the same URL found that nobody is there."""


class Phase(StrEnum):
    """What a running job is doing; detail for people, never a status."""

    INSPECTING = "inspecting"
    BASELINE = "baseline"
    PRUNING = "pruning"
    FACTORIZING = "factorizing"
    FINETUNING = "finetuning"
    CALIBRATING = "calibrating"
    QUANTIZING = "quantizing"
    EXPORTING = "exporting"
    VERIFYING = "verifying"
    MEASURING = "measuring"
