"""How a spec asks for training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from models.spec_types import Strict

Loss = Literal["task", "distill", "both"]


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


class Training(Strict):
    """How to train: what every step that does has in common."""

    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = Field(
        default=5e-4, description="Peak of a one-cycle schedule: linear warm-up, then cosine to zero (AdamW)."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-4
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    loss: Loss | None = Field(default=None, description="Default: `both` with labels and a task, else `distill`.")
    distill: Distill = Distill()


class FinetuneStep(Training):
    """Train the network for a few epochs and keep the best checkpoint."""

    step: Literal["finetune"]
    epochs: Annotated[int, Field(ge=1, le=1000)] = 5
