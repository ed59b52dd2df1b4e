"""How a spec asks for pruning: what goes, how much of it, by which criterion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.criteria import Aggregate, Normalize, NormalizeOver, UnitCriterion
from models.spec_types import Fraction, LayerChoice, Strict


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
    criterion: UnitCriterion = Field(default="l2", description="What makes a channel matter; the least goes first.")
    aggregate: Aggregate = Field(default="mean", description="A channel's score from those of its parameters.")
    normalize: Normalize | None = Field(
        default=None,
        description="What scores are divided by, so that they can be compared: their mean, sum or maximum over the "
        "channels of a group; `standard`: mean 0 and deviation 1. Default: what is usual for the criterion.",
    )
    normalize_over: NormalizeOver = Field(
        default="parameters", description="Normalize each parameter's scores, or the group's once they are aggregated."
    )
    samples: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=512, description="Training samples whose gradients are taken; only where the criterion needs any."
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="One ranking over the network, or the same fraction of every group."
    )
    amount: Amount
    round_to: Annotated[int, Field(ge=1, le=128)] = Field(
        default=8, description="Channels that stay are a multiple of this; odd counts are slow on most hardware."
    )
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])
