"""The job spec: what a person asks for. Types only; `rules.py` checks a spec against a network and its data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Glob = Annotated[str, Field(min_length=1, max_length=200)]
Task = Literal["classification", "multilabel", "regression", "segmentation", "none"]
Metric = Literal[
    "accuracy", "top5_accuracy", "macro_f1", "micro_f1", "mae", "rmse", "mean_iou", "pixel_accuracy", "agreement"
]
Device = Literal["auto", "cpu", "cuda"]
ExportFormat = Literal["onnx", "pt2"]


class Strict(BaseModel):
    """Frozen, and refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Transform(Strict):
    """How a stored sample becomes a network input, in this order: resize, crop, scale, subtract mean, divide by std."""

    resize: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Shorter side in pixels after resizing; images only."
    )
    crop: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Side in pixels of the square cut from the centre; images only."
    )
    scale: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None, description="Factor on every value. Default: 1/255 for images and uint8 arrays, else 1."
    )
    mean: Annotated[list[float], Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="Subtracted per channel, after scaling."
    )
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="Divides per channel, after the mean is subtracted."
    )


class Data(Strict):
    """The data set a job uses, and how to read it."""

    dataset: str
    task: Task | None = Field(
        default=None,
        description="Default: `classification` with one integer label a sample, `multilabel` with a row of them, "
        "`segmentation` with a map of them, `regression` with float ones, else `none`.",
    )
    metric: Metric | None = Field(default=None, description="Default: the first metric of the task.")
    transform: Transform = Transform()
    output: str | None = Field(default=None, description="Name of the output that counts when there are several.")


class LayerChoice(Strict):
    """An exception for the layers whose names match a glob."""

    match: Glob
    skip: Literal[True]


class Amount(Strict):
    """The fraction removed, of exactly one quantity."""

    channels: Fraction | None = None
    parameters: Fraction | None = None
    macs: Fraction | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Amount:
        if sum(value is not None for value in (self.channels, self.parameters, self.macs)) != 1:
            raise ValueError("give exactly one of channels, parameters, macs")
        return self

    @property
    def quantity(self) -> Literal["channels", "parameters", "macs"]:
        return "channels" if self.channels is not None else "parameters" if self.parameters is not None else "macs"

    @property
    def fraction(self) -> float:
        value: float = getattr(self, self.quantity)
        return value


class PruneStep(Strict):
    """Remove whole channels, so that tensors really shrink."""

    step: Literal["prune"]
    structure: Literal["channels"] = "channels"
    criterion: Literal["l1", "l2", "random"] = "l2"
    scope: Literal["global", "layer"] = Field(
        default="global", description="One ranking over the network, or the same fraction of every group."
    )
    amount: Amount
    round_to: Annotated[int, Field(ge=1, le=128)] = Field(
        default=8, description="Channels that stay are a multiple of this; odd counts are slow on most hardware."
    )
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = []


class Distill(Strict):
    """Learn from the outputs of the original network (Hinton et al., 2015)."""

    from_: Literal["original"] = Field(default="original", alias="from")
    weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description='Share of the distillation loss when `"loss": "both"`.'
    )
    temperature: Annotated[float, Field(ge=1, le=100)] = 4.0

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_alias=True, validate_by_name=True, serialize_by_alias=True
    )


class FinetuneStep(Strict):
    """Train the network for a few epochs and keep the best checkpoint."""

    step: Literal["finetune"]
    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = Field(
        default=5e-4, description="Peak of a one-cycle schedule: linear warm-up, then cosine to zero (AdamW)."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    loss: Literal["task", "distill", "both"] | None = Field(
        default=None, description="Default: `both` with labels and a task, else `distill`."
    )
    distill: Distill = Distill()


class QuantizeStep(Strict):
    """Make the weights and activations 8-bit integers (post-training, static, per output channel)."""

    step: Literal["quantize"]
    scheme: Literal["int8"] = "int8"
    method: Literal["ptq"] = "ptq"
    calibration_samples: Annotated[int, Field(ge=1, le=100_000)] = 256
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = []


Step = Annotated[PruneStep | FinetuneStep | QuantizeStep, Field(discriminator="step")]


class Limits(Strict):
    timeout_s: Annotated[int, Field(ge=1, le=7 * 86400)] = Field(
        default=7200, description="Seconds one attempt may run before it fails as `timeout`."
    )
    on_timeout: Literal["fail", "best_so_far"] = Field(
        default="fail",
        description="`best_so_far`: once the time is up, stop training at the best state so far, leave the steps that "
        "have not begun out, and deliver that; the report says so in `cut_short`.",
    )


class Require(Strict):
    """A floor under the result: how far `data.metric` (agreement without labels) may fall on the validation data."""

    max_metric_drop: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    on_miss: Literal["report", "fail"] = "report"


def _distinct(formats: list[ExportFormat]) -> list[ExportFormat]:
    if len(set(formats)) != len(formats):
        raise ValueError("each format once")
    return formats


class Spec(Strict):
    """`POST /jobs`: the network, the data, the steps, the files wanted."""

    model: str = Field(description="Id of the network.")
    name: Annotated[str, Field(max_length=255)] | None = None
    data: Data | None = None
    preset: str | None = Field(default=None, description="A named list of steps; see `/presets`.")
    steps: Annotated[list[Step], Field(min_length=1, max_length=32)] | None = None
    export: Annotated[list[ExportFormat], Field(min_length=1), AfterValidator(_distinct)] = ["onnx", "pt2"]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    device: Device = "auto"
    require: Require | None = None
    limits: Limits = Limits()
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=50)
    ] = {}

    @model_validator(mode="before")
    @classmethod
    def _dataset_is_short_for_data(cls, value: Any) -> Any:
        if isinstance(value, dict) and "dataset" in value:
            if "data" in value:
                raise ValueError("give `dataset` or `data`, not both")
            value = dict(value)
            value["data"] = {"dataset": value.pop("dataset")}
        return value

    @model_validator(mode="after")
    def _steps_or_preset(self) -> Spec:
        if (self.steps is None) == (self.preset is None):
            raise ValueError("give exactly one of `steps` and `preset`")
        return self
