"""The job spec: what a person asks for. Types only; `rules.py` checks a spec against a network and its data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from models.spec_factorize import FactorAmount, FactorChoice, FactorizeStep, FactorTarget, Rank
from models.spec_int8 import Int8Choices, LayerInt8, QatStep
from models.spec_lowbit import BinaryStep, CodebookStep, Int4Step, LowBitLayer, LowBitStep, TernaryStep
from models.spec_prune import Amount, LayerAmount, PruneChoice, PruneStep, Quantity, Schedule, Target
from models.spec_quantize import Quantize, QuantizeStep, flatten_choices
from models.spec_schemes import AutoStep, DynamicStep, FloatStep, Fp8Step, StoredStep
from models.spec_sensitivity import SensitivityStep
from models.spec_sparsify import Blocks, LayerSparsity, NOfM, SparsifyStep
from models.spec_train import Distill, Feature, FinetuneStep, Loss, Training
from models.spec_types import LayerChoice, Strict

__all__ = [
    "Amount",
    "AutoStep",
    "BinaryStep",
    "Blocks",
    "CodebookStep",
    "Data",
    "Device",
    "Distill",
    "DynamicStep",
    "ExportFormat",
    "FactorAmount",
    "FactorChoice",
    "FactorTarget",
    "FactorizeStep",
    "Feature",
    "FinetuneStep",
    "FloatStep",
    "Fp8Step",
    "Int4Step",
    "Int8Choices",
    "LayerAmount",
    "LayerChoice",
    "LayerInt8",
    "LayerSparsity",
    "Limits",
    "Loss",
    "LowBitLayer",
    "LowBitStep",
    "Metric",
    "NOfM",
    "PruneChoice",
    "PruneStep",
    "QatStep",
    "Quantity",
    "Quantize",
    "QuantizeStep",
    "Rank",
    "Require",
    "Schedule",
    "SensitivityStep",
    "SparsifyStep",
    "Spec",
    "Step",
    "StoredStep",
    "Strict",
    "Target",
    "Task",
    "TernaryStep",
    "Training",
    "Transform",
    "Webhook",
]

Task = Literal[
    "classification", "multilabel", "regression", "segmentation", "tagging", "causal_lm", "embedding", "none"
]
Metric = Literal[
    "perplexity",
    "accuracy",
    "top5_accuracy",
    "macro_f1",
    "micro_f1",
    "mae",
    "rmse",
    "mean_iou",
    "pixel_accuracy",
    "recall_at_1",
    "agreement",
]
Device = Literal["auto", "cpu", "cuda"]
ExportFormat = Literal["onnx", "pt2", "safetensors"]


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
        description="Default: `classification` with one integer label a sample, `multilabel` with a row of zeros and "
        "ones, `tagging` with a row of other integers, `segmentation` with a map of them, `regression` with float "
        "ones, else `none`. `causal_lm`: without `y`, the label at each position is the token that follows in the "
        "input. `embedding`: labels say which samples belong together; without them directions are kept.",
    )
    metric: Metric | None = Field(default=None, description="Default: the first metric of the task.")
    transform: Transform = Transform()
    output: str | None = Field(default=None, description="Name of the output that counts when there are several.")
    ignore: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = Field(
        default=None,
        description="The label that does not count (in `causal_lm` without `y`, the padding token). Default: 255 in "
        "`segmentation`, -100 in `tagging` and in `causal_lm` with `y`.",
    )


Step = Annotated[
    PruneStep | SparsifyStep | FactorizeStep | FinetuneStep | Quantize | SensitivityStep,
    Field(discriminator="step", json_schema_extra=flatten_choices),
]


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


class Webhook(Strict):
    """Whom to tell that the job has ended: a signed POST, as Standard Webhooks 1.0 says (standardwebhooks.com)."""

    url: Annotated[str, Field(min_length=1, max_length=2048)] = Field(
        description="On https, port 443, 80 or from 1024 up, at public addresses. Redirects are not followed."
    )


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
    export: Annotated[list[ExportFormat], AfterValidator(_distinct)] | None = Field(
        default=None,
        description='Formats to write. Default: `["onnx", "pt2"]`, and `"safetensors"` after `sparsify`; none where '
        "no step changes the network.",
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    device: Device = "auto"
    require: Require | None = None
    limits: Limits = Limits()
    webhook: Webhook | None = None
    metadata: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=50)
    ] = Field(default={})

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
