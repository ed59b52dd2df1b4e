"""The one vocabulary of what happens in a job: lines on the engine's pipe, rows in the database, events on the wire.

The engine says one JSON object a line. The worker checks each line here, stores it, and adds `status` events.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from models.errors import JobError
from models.inspection import DatasetInspection, NetworkInspection, Notice
from models.report import StepReport
from models.spec import ExportFormat
from models.statuses import JobStatus, Phase

MAX_LINE_BYTES = 8 << 20
"""A line longer than this is a broken engine."""


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhaseEvent(_Event):
    """A phase began. `step_index` counts from 0; `None` outside the steps."""

    type: Literal["phase"] = "phase"
    phase: Phase
    step_index: int | None = None
    step_count: int


class ProgressEvent(_Event):
    """`percent` of the whole job, 0 to 100, never falling; `eta_seconds` for the whole job."""

    type: Literal["progress"] = "progress"
    percent: Annotated[float, Field(ge=0, le=100)]
    epoch: int | None = None
    epochs: int | None = None
    eta_seconds: float | None = None


class MetricEvent(_Event):
    """A number on the way: the loss or a metric of an epoch; `value` is null where it was not finite."""

    type: Literal["metric"] = "metric"
    name: str
    value: float | None
    split: Literal["train", "val", "test"]
    step_index: int | None = None
    epoch: int | None = None


class WarningEvent(_Event):
    type: Literal["warning"] = "warning"
    notice: Notice


class StepEvent(_Event):
    """A step finished."""

    type: Literal["step"] = "step"
    report: StepReport


class CheckpointEvent(_Event):
    """The state after step `step_index`, or inside it in `epoch`, lies at `path` (relative to the job folder): one
    safetensors file.

    `key` identifies what it is the result of: network, data, spec prefix, seed, code version."""

    type: Literal["checkpoint"] = "checkpoint"
    step_index: int
    epoch: int | None = None
    path: str
    key: str


class ArtifactEvent(_Event):
    """A finished file at `path` (relative to the job folder)."""

    type: Literal["artifact"] = "artifact"
    name: str
    kind: ExportFormat | Literal["report", "page", "card", "spec"]
    content_type: str
    path: str
    partial: bool = False


class InspectedEvent(_Event):
    type: Literal["inspected"] = "inspected"
    inspection: Annotated[NetworkInspection | DatasetInspection, Field(discriminator="kind")]


class FinishedEvent(_Event):
    """The last line of a job that succeeded; `report` is the path of report.json in the job folder."""

    type: Literal["finished"] = "finished"
    report: str


class FailedEvent(_Event):
    """The last line of a job that failed."""

    type: Literal["failed"] = "failed"
    error: JobError


EngineEvent = Annotated[
    PhaseEvent
    | ProgressEvent
    | MetricEvent
    | WarningEvent
    | StepEvent
    | CheckpointEvent
    | ArtifactEvent
    | InspectedEvent
    | FinishedEvent
    | FailedEvent,
    Field(discriminator="type"),
]
ENGINE_EVENT: TypeAdapter[EngineEvent] = TypeAdapter(EngineEvent)


class StatusEvent(_Event):
    """The job's status changed. The terminal one carries the whole job on the wire."""

    type: Literal["status"] = "status"
    status: JobStatus
    attempt: int
    message: str | None = None
    job: dict[str, Any] | None = None


class StoredEvent(_Event):
    """An event as the API gives it; `id` grows by one within a job."""

    id: int
    at: datetime
    attempt: int
    data: Annotated[EngineEvent | StatusEvent, Field(discriminator="type")]
