"""What the API answers with: the shapes of networks, data sets, jobs and the rest on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from models.errors import JobError
from models.inspection import GroupInfo, ImageSizes, LabelInfo, LayerInfo, Notice, TensorInfo
from models.presets import Preset
from models.reading import ReadOptions
from models.statuses import JobStatus, Phase, UploadStatus
from models.webhook_views import JobWebhook

StoredSpec = Annotated[dict[str, Any], WithJsonSchema({"x-schema": "Spec"})]
"""A spec as it was stored: shown as it is, also after the schema grew. `x-schema` becomes a reference in OpenAPI."""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _UploadView(_View):
    id: str
    name: str
    status: UploadStatus
    size_bytes: int
    sha256: str
    error: JobError | None = Field(description="Why it was rejected.")
    created_at: datetime


class NetworkView(_UploadView):
    """An uploaded network. What inspection found is `null` until `status` is `ready`."""

    read_options: ReadOptions = Field(description="What was said about how to read the file.")
    format: str | None = None
    inputs: list[TensorInfo] | None = None
    outputs: list[TensorInfo] | None = None
    parameters: int | None = None
    macs: int | None = Field(default=None, description="Multiply-accumulates for one sample.")
    warnings: list[Notice] | None = None


class NetworkDetail(NetworkView):
    """A network with its layers and its groups of channels that can only be removed together."""

    layers: list[LayerInfo] | None = None
    groups: list[GroupInfo] | None = None


class DatasetView(_UploadView):
    """An uploaded data set. What inspection found is `null` until `status` is `ready`."""

    format: str | None = None
    samples: int | None = None
    inputs: list[TensorInfo] | None = Field(default=None, description="One sample each, without a batch dimension.")
    labels: LabelInfo | None = None
    class_names: list[str] | None = None
    splits: dict[str, int] | None = None
    skipped_samples: int | None = None
    image_sizes: ImageSizes | None = Field(default=None, description="Of encoded images, before any transform.")
    warnings: list[Notice] | None = None


class Progress(_View):
    """How far a job is. `step_index` counts from 0 and is `null` outside the steps."""

    percent: float = 0.0
    step_index: int | None = None
    step_count: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    eta_seconds: float | None = None


class JobUrls(_View):
    self: str
    events: str
    log: str
    artifacts: str
    bundle: str
    report: str
    cancel: str
    clone: str


class JobView(_View):
    """A job, whole."""

    id: str
    name: str | None
    status: JobStatus
    phase: Phase | None = Field(description="What a running job is doing.")
    attempt: int = Field(description="How many times a worker has taken it.")
    spec: StoredSpec = Field(description="As it was sent.")
    resolved_spec: StoredSpec = Field(description="With the preset and every default filled in.")
    progress: Progress
    queue_position: int | None = Field(description="1 is the next to start; `null` unless queued.")
    error: JobError | None
    webhook: JobWebhook | None = Field(
        description="What became of the message about its end; `null` before that, and where no `webhook` was given."
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="When it will be deleted; `null`: kept until somebody deletes it.")
    metadata: dict[str, str]
    urls: JobUrls


class ExpectedUnits(_View):
    """`least` and `most` are the same where scores do not decide."""

    least: int
    most: int


class ExpectedSize(ExpectedUnits):
    """What is left: exactly, where `least` and `most` are the same, else no less and no more."""

    asked: int | None = Field(
        default=None, description="What the step's amount leaves, within 2 % of what there was where `round_to` allows."
    )


class ExpectedStep(_View):
    """The network after a step. `bytes` are those of its weights, before any file is packed. `null` for a network that
    was inspected by an older version."""

    index: int
    step: str
    parameters: ExpectedSize | None
    macs: ExpectedSize | None
    bytes: ExpectedSize | None


class DryRunGroup(GroupInfo):
    """A group of channels, whether the spec leaves it alone in every prune step, and what is left of it in the end."""

    skipped: bool
    units_left: ExpectedUnits | None


class DryRun(_View):
    """What `POST /jobs` would queue."""

    resolved_spec: StoredSpec
    groups: list[DryRunGroup]
    steps: list[ExpectedStep]


class StoredEventView(_View):
    """An event as it was stored: shown as it is, also after the vocabulary grew."""

    id: int = Field(description="Counts from 1 within the job.")
    at: datetime
    attempt: int
    data: Annotated[dict[str, Any], WithJsonSchema({"x-schema": "JobEvent"})]


class EventPage(_View):
    data: list[StoredEventView]
    has_more: bool
    next_cursor: str | None = Field(description="Send it as `after`.")


class ArtifactView(_View):
    name: str
    kind: str
    size_bytes: int
    sha256: str
    content_type: str
    partial: bool = Field(description="From a job that did not succeed: not verified.")
    url: str


class NetworkPage(_View):
    data: list[NetworkView]
    has_more: bool
    next_cursor: str | None


class DatasetPage(_View):
    data: list[DatasetView]
    has_more: bool
    next_cursor: str | None


class JobPage(_View):
    data: list[JobView]
    has_more: bool
    next_cursor: str | None


class ArtifactList(_View):
    data: list[ArtifactView]


class PresetList(_View):
    data: list[Preset]


class Health(_View):
    status: Literal["ok"] = "ok"


class Readiness(_View):
    """`checks` has `ok` or what is wrong, for the database, the broker and the blob store."""

    status: Literal["ok", "unavailable"]
    checks: dict[str, str]


class DeviceView(_View):
    """A device class and the live workers that offer it."""

    device: str
    workers: int
    slots: int
    memory_bytes: int | None
    sandbox: list[str]
    versions: dict[str, list[str]]


class LimitsView(_View):
    model_bytes: int
    dataset_bytes: int
    spec_bytes: int
    wait_seconds: int
    list_items: int
    body_idle_seconds: float
    body_minimum_bytes_per_second: int
    upload_bytes: int = Field(description="The longest file that `/uploads` takes.")
    open_uploads: int = Field(description="Resumable uploads of one tenant at once.")
    upload_expiry_seconds: float = Field(description="How long a resumable upload may rest.")
    stored_bytes: int = Field(description="Of one tenant: networks, data sets, artifacts and uploads, same bytes once.")
    queued_jobs: int = Field(description="Of one tenant, as are those that follow; this one: jobs that wait at once.")
    running_jobs: int | None = Field(description="Jobs that run at once; null: as many as workers take.")
    requests_per_second: float | None = Field(description="Over all keys; null: no limit.")
    request_burst: int = Field(description="Requests that may come at once before the rate counts.")


class WebhooksView(_View):
    """How jobs' webhooks are told, by Standard Webhooks 1.0."""

    events: list[str]
    schemes: list[str] = Field(description="Of URLs.")
    signature: str
    delays_seconds: list[float] = Field(description="Before each attempt, after the one before.")
    timeout_seconds: float


class Capabilities(_View):
    """What this deployment can do."""

    steps: list[str]
    structures: list[str]
    criteria: list[str] = Field(description="Of `prune`: how channels are ranked.")
    weight_criteria: list[str] = Field(description="Of `sparsify`: how weights are ranked.")
    aggregates: list[str] = Field(description="Of `prune`: how the scores of a channel's parameters become one.")
    normalizations: list[str] = Field(description="Of `prune`: what makes scores comparable.")
    patterns: list[str] = Field(description="Of `sparsify`: which weights go together.")
    factor_methods: list[str] = Field(description="Of `factorize`: how kernels are taken apart.")
    ranks: list[str] = Field(description="Of `factorize`: by what a layer's rank is chosen, beside `amount`.")
    scopes: list[str]
    amounts: list[str]
    targets: list[str] = Field(description="Of `amount.target`: quantities of which so much is to be left.")
    curves: list[str] = Field(description="Of `schedule`: how an amount grows from round to round.")
    losses: list[str]
    optimizers: list[str]
    rate_schedules: list[str]
    penalties: list[str]
    precisions: list[str]
    schemes: list[str]
    methods: list[str]
    tasks: list[str]
    metrics: list[str]
    model_formats: list[str]
    dataset_formats: list[str]
    export_formats: list[str]
    devices: list[DeviceView]
    sandbox: list[str] = Field(description="Levels that live workers report for the process that opens uploads.")
    limits: LimitsView
    webhooks: WebhooksView | None = Field(
        description="`null`: MODELPRESS_WEBHOOK_SECRET is not set, so there are none."
    )
    versions: dict[str, str]
    never_exercised: list[str] = Field(description="Code paths that no test of this version has run on their hardware.")
    never_exercised_here: list[str] = Field(description="Code paths that no live worker of this deployment can run.")
