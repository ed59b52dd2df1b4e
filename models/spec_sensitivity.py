"""How a spec asks how much each group of channels matters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from models.criteria import UnitCriterion
from models.spec_types import Count, Fraction, LayerChoice, Strict


def _rising(amounts: list[float]) -> list[float]:
    if sorted(set(amounts)) != amounts:
        raise ValueError("give the amounts in rising order, each once")
    return amounts


class SensitivityStep(Strict):
    """Cut each group of channels on its own, a little and more, and measure what is lost each time (Li et al., ICLR
    2017). The network stays as it is; a job of nothing else gives a report and no network."""

    step: Literal["sensitivity"]
    amounts: Annotated[list[Fraction], Field(min_length=1, max_length=20), AfterValidator(_rising)] = Field(
        default=[0.25, 0.5, 0.75], description="Fractions of a group's channels to try without."
    )
    criterion: UnitCriterion = Field(default="l2", description="What makes a channel matter; the least goes first.")
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Training samples whose gradients are taken, where the criterion needs any; 512 by default.",
    )
    validation_samples: Count | None = Field(
        default=None, description="Validation samples to measure on, drawn by the seed. Default: all."
    )
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])
