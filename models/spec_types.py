"""What every part of a spec is made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Glob = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """Frozen, and refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerChoice(Strict):
    """An exception for the layers whose names match a glob."""

    match: Glob
    skip: Literal[True]


class Floor(Strict):
    """How far fewer bits may let the metric that decides (agreement without labels) fall on the validation data, from
    what it was before the step. Where it falls further the layers that add most noise keep more bits."""

    max_metric_drop: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Validation samples to measure on; all by default."
    )
