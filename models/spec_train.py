"""How a spec asks for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from models.spec_optimizer import USUAL_RATES, USUAL_WARM_UP, AdamW, LearningRate, Optimizer, RateSchedule, Share, usual
from models.spec_regularize import Regularize
from models.spec_speed import AnySpeed, Augment, Speed
from models.spec_types import Glob, Strict

Loss = Literal["task", "distill", "both"]
ORIGINAL = "original"
DroppedShare = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class Feature(Strict):
    """A layer whose values are drawn to those of the teacher's layer of the same name."""

    layer: Glob
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = 1.0


class Distill(Strict):
    """Learn from the outputs of a teacher (Hinton et al., 2015), and from what its layers give (FitNets: Romero et al.,
    2015)."""

    from_: Annotated[str, Field(pattern=r"^(original|net_\w{1,60})$")] = Field(
        default="original",
        alias="from",
        description="`original`, or the id of another network with the same inputs and outputs.",
    )
    weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description='Share of the distillation loss when `"loss": "both"`.'
    )
    temperature: Annotated[float, Field(ge=1, le=100)] = 4.0
    features: Annotated[list[Feature], Field(max_length=100)] = Field(
        default=[],
        description="Mean squared error of layers' values, over the variance of the teacher's, added to that of the "
        "outputs; through a linear projection, learnt with the network, where a cut has made them narrower.",
    )

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_alias=True, validate_by_name=True, serialize_by_alias=True
    )


class Training(Strict):
    """How to train: what every step that does has in common. `compiles`: through compiled kernels, where asked."""

    compiles: ClassVar[bool] = True

    optimizer: Optimizer = Field(default=AdamW(), description='`"adamw"`, `"sgd"`, or one with its settings.')
    learning_rate: LearningRate = Field(
        default=USUAL_RATES["adamw"],
        description="Peak of the schedule. Default: 5e-4, with `sgd` 0.01. `auto`: found by a short range test (Smith, "
        "2017) on a copy of the network; the report says which.",
    )
    rate_schedule: RateSchedule = Field(
        default="one_cycle",
        description="After the warm-up: `one_cycle` and `cosine` fall to zero as a cosine does, `linear` as a line; "
        "`step`: a tenth after half and a hundredth after three quarters of the training (He et al., 2016).",
    )
    warm_up: Share = Field(
        default=USUAL_WARM_UP,
        description="Share of the training in which the rate rises to its peak. Default: 0.1 of `one_cycle`, else 0.",
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="Of matrices and kernels; vectors (biases, scales) do not decay."
    )
    clip_norm: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=1.0, description="Gradients are scaled down to this norm (Pascanu et al., 2013); null: never."
    )
    average: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Decay of a moving average of the weights (Polyak and Juditsky, 1992), such as 0.999. It is judged "
        "after every epoch beside the weights themselves, and kept where it is better.",
    )
    regularize: Regularize | None = Field(
        default=None, description="Draw weights or channels to zero, for a `prune` or `sparsify` step that follows."
    )
    keep: Literal["best", "last"] = Field(
        default="best",
        description="Which weights are kept: those of the best epoch on the validation data (which may be none), or "
        "the last. Default: `last` with `regularize`, as what was drawn to zero would be lost otherwise.",
    )
    batch_norm: Literal["learn", "freeze"] = Field(
        default="learn", description="`freeze`: the statistics of BatchNorm layers stay, and batches may be small."
    )
    speed: AnySpeed = Field(default=Speed(), description='What makes steps faster; `"auto"` measures all of it.')
    augment: Augment | None = Field(default=None, description="Change images a little each time they are seen.")
    dropout: DroppedShare = Field(
        default=0.0,
        description="Share of what linear layers read, and of attention weights, that is zero while training "
        "(Srivastava et al., 2014): an export in eval mode has left none of it.",
    )
    drop_path: DroppedShare = Field(
        default=0.0,
        description="Share of samples that leave out the last residual branch while training, earlier ones less in "
        "proportion (stochastic depth: Huang et al., 2016).",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    loss: Loss | None = Field(default=None, description="Default: `both` with labels and a task, else `distill`.")
    distill: Distill = Distill()

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_follow(cls, value: Any) -> Any:
        return usual(value)

    @model_validator(mode="after")
    def _a_sample_for_each_process(self) -> Training:
        if isinstance(self.speed.processes, int) and self.speed.processes > self.batch_size:
            raise ValueError("`speed.processes` divide a batch: no more of them than `batch_size`")
        return self


class FinetuneStep(Training):
    """Train the network for a few epochs and keep the best checkpoint."""

    step: Literal["finetune"]
    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
    patience: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Stop early after so many epochs without a better one; null: never."
    )

    @model_validator(mode="after")
    def _patience_waits_for_a_better_one(self) -> FinetuneStep:
        if self.patience is not None and self.keep == "last":
            raise ValueError('`patience` waits for a better epoch, and `"keep": "last"` asks for none: leave it out')
        return self


def trainings(steps: Sequence[Any]) -> list[tuple[str, Training]]:
    """Every training that `steps` ask for, with a pointer to it from `/steps`: a step that is one, or the schedule of
    another."""
    found: list[tuple[str, Training]] = []
    for index, step in enumerate(steps):
        schedule = getattr(step, "schedule", None)
        for pointer, part in ((f"/{index}", step), (f"/{index}/schedule", schedule)):
            if isinstance(part, Training):
                found.append((pointer, part))
    return found


def team_size(steps: Sequence[Any], devices: int) -> int:
    """In how many processes some training of `steps` runs, at most, on a worker with so many devices."""
    asked = [training.speed.processes for _, training in trainings(steps)]
    return max((devices if count == "auto" else count for count in asked), default=1)


def may_compile(steps: Sequence[Any]) -> bool:
    """Whether some training of `steps` compiles, or looks whether that pays."""
    return any(training.speed.compile is not False for _, training in trainings(steps) if training.compiles)


def teacher_ids(steps: Sequence[Any]) -> dict[str, str]:
    """The networks other than the original that teach in `steps`; each with a pointer to where it is first named."""
    found: dict[str, str] = {}
    for pointer, training in trainings(steps):
        if training.distill.from_ != ORIGINAL:
            found.setdefault(training.distill.from_, f"/steps{pointer}/distill/from")
    return found
