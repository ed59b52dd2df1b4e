"""How a spec asks for pruning: what goes, how much of it, by which criterion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.criteria import Aggregate, GradientLoss, Normalize, NormalizeOver, UnitCriterion
from models.spec_train import Training
from models.spec_types import Count, Fraction, Glob, Strict

Left = Annotated[float, Field(ge=1, le=1e18, allow_inf_nan=False)]
Threshold = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Percentile = Annotated[float, Field(gt=0, lt=100, allow_inf_nan=False)]
RoundTo = Annotated[int, Field(ge=1, le=128)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Quantity = Literal["channels", "parameters", "macs", "bytes", "latency"]


class Target(Strict):
    """What is left in the end, of exactly one quantity."""

    channels: Left | None = Field(default=None, description="Of all groups that may shrink together.")
    parameters: Left | None = None
    macs: Left | None = Field(default=None, description="Multiply-accumulates for one sample.")
    bytes: Left | None = Field(default=None, description="Of the weights in a file: parameters and buffers.")
    latency_ms: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Median for one sample, measured on the worker with the files of candidate cuts, in the runtime "
        "of the first format of `export`.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Target:
        _exactly_one_of(self)
        return self


class Amount(Strict):
    """How much goes, said in exactly one way: the fraction of a quantity, what is left of it, or which scores go."""

    channels: Fraction | None = Field(
        default=None, description="Of the units of all groups that may shrink; an attention head is one."
    )
    parameters: Fraction | None = None
    macs: Fraction | None = None
    bytes: Fraction | None = Field(default=None, description="Of the weights in a file: parameters and buffers.")
    latency: Fraction | None = Field(default=None, description="Measured, as `target.latency_ms` is.")
    target: Target | None = None
    threshold: Threshold | None = Field(
        default=None, description="Units whose score is below it go; no layer is emptied."
    )
    percentile: Percentile | None = Field(
        default=None, description="Units whose score is below this percentile go: of all scores, or of each layer's."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Amount:
        _exactly_one_of(self)
        return self

    @property
    def quantity(self) -> Quantity | None:
        """Of which so much goes; none for a threshold or a percentile."""
        if self.target is not None:
            name = _given(self.target)[0]
            return "latency" if name == "latency_ms" else name  # type: ignore[return-value]
        name = _given(self)[0]
        return None if name in ("threshold", "percentile") else name  # type: ignore[return-value]

    @property
    def fraction(self) -> float | None:
        """That goes, where it is said so."""
        if self.target is not None or self.quantity is None:
            return None
        value: float = getattr(self, self.quantity)
        return value

    @property
    def left(self) -> float | None:
        """What is left of the quantity, where it is said so."""
        if self.target is None:
            return None
        value: float = getattr(self.target, _given(self.target)[0])
        return value


class LayerTarget(Strict):
    """What is left of a layer."""

    channels: Count


class LayerAmount(Strict):
    """How much goes of every group of channels with a matching layer, said in exactly one way."""

    channels: Fraction | None = None
    target: LayerTarget | None = None
    threshold: Threshold | None = None
    percentile: Percentile | None = Field(default=None, description="Of the group's own scores.")

    @model_validator(mode="after")
    def _exactly_one(self) -> LayerAmount:
        _exactly_one_of(self)
        return self


class PruneChoice(Strict):
    """What is different for the layers whose names match a glob: the first choice that matches a layer counts.

    Layers that lose channels together follow a choice that skips one of them, else the first that any of them has.
    What a choice does not say is as the step says it.
    """

    match: Glob
    skip: Literal[True] | None = None
    criterion: UnitCriterion | None = None
    normalize: Normalize | None = Field(
        default=None, description="Default: the step's where it has the same criterion, else what is usual for this."
    )
    amount: LayerAmount | None = Field(default=None, description="Of each group by itself; the step's is for the rest.")
    minimum: Count | None = None
    maximum_fraction: Share | None = None
    round_to: RoundTo | None = None

    @model_validator(mode="after")
    def _says_something(self) -> PruneChoice:
        said = [name for name in _given(self) if name != "match"]
        if not said:
            raise ValueError("give skip, criterion, normalize, amount, minimum, maximum_fraction or round_to")
        if self.skip and len(said) > 1:
            raise ValueError(f"a layer that is skipped has no {' and no '.join(said[1:])}")
        return self


class Schedule(Training):
    """Prune in rounds, each scored anew, and train between them. After round r of n so much of the amount s is gone:
    `linear` s r/n; `cubic` s - s (1 - r/n)^3 (Zhu and Gupta, 2017); `exponential` 1 - (1 - s)^(r/n), the same
    fraction of what is left each time (Frankle and Carbin, 2019)."""

    rounds: Annotated[int, Field(ge=2, le=100)]
    curve: Literal["linear", "cubic", "exponential"] = "cubic"
    epochs_between: Annotated[int, Field(ge=1, le=1000)] = 1


class PruneStep(Strict):
    """Remove whole channels, so that tensors really shrink."""

    step: Literal["prune"]
    structure: Literal["channels", "columns", "heads", "groups"] = Field(
        default="channels",
        description="`channels`: output channels, and whole heads where attention has them. `columns`: input "
        "features, ranked by the layers that read them, which is what `layers` names then. `heads`: attention heads "
        "alone. `groups`: whole groups with the rest of their branch, where that joins the network in a sum or a "
        "product: blocks with a residual, gates.",
    )
    criterion: UnitCriterion = Field(default="l2", description="What makes a channel matter; the least goes first.")
    aggregate: Aggregate = Field(default="mean", description="A channel's score from those of its parameters.")
    normalize: Normalize | None = Field(
        default=None,
        description="What scores are divided by, so that they can be compared: their mean, sum or maximum over the "
        "channels of a group; `standard`: mean 0 and deviation 1. Default: what is usual for the criterion, `mean` "
        "where one ranking has several criteria, and `none` with a threshold.",
    )
    normalize_over: NormalizeOver = Field(
        default="parameters", description="Normalize each parameter's scores, or the group's once they are aggregated."
    )
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Training samples whose gradients are taken, where the criterion needs any; 512 by default.",
    )
    loss: GradientLoss | None = Field(
        default=None,
        description="What is differentiated, where the criterion needs gradients: the loss on labels, or the distance "
        "to the original's outputs. Default: `task` with labels and a task, else `distill`.",
    )
    scope: Literal["global", "layer"] = Field(
        default="global", description="One ranking over the network, or the same fraction of every group."
    )
    amount: Amount | None = Field(default=None, description="Of the whole network; without one only `layers` shrink.")
    minimum: Count = Field(default=1, description="Units that every group of channels keeps at least.")
    maximum_fraction: Share = Field(
        default=1.0, description="The largest fraction of a group's units that may go, against layers that collapse."
    )
    round_to: RoundTo = Field(
        default=8, description="Channels that stay are a multiple of this; odd counts are slow on most hardware."
    )
    layers: Annotated[list[PruneChoice], Field(max_length=1000)] = Field(default=[])
    schedule: Schedule | None = None

    @model_validator(mode="after")
    def _whole_groups_go_or_stay(self) -> PruneStep:
        if self.structure != "groups":
            return self
        if (self.minimum, self.maximum_fraction, self.round_to, self.scope) != (1, 1.0, 8, "global"):
            raise ValueError("groups go as a whole: leave minimum, maximum_fraction, round_to and scope out")
        if self.normalize not in (None, "none"):
            raise ValueError("normalised, all groups score alike: leave normalize out")
        bounds = ("amount", "minimum", "maximum_fraction", "round_to")
        if any(getattr(choice, name) is not None for choice in self.layers for name in bounds):
            raise ValueError("groups go as a whole: layers may be skipped, or have their own criterion")
        if self.schedule is not None and self.amount is not None and self.amount.percentile is not None:
            raise ValueError("with a schedule give the amount of groups as a quantity")
        return self

    @model_validator(mode="after")
    def _how_much(self) -> PruneStep:
        if self.amount is None and all(choice.amount is None for choice in self.layers):
            raise ValueError("give amount, here or for some layers")
        amounts = [self.amount, *(choice.amount for choice in self.layers)]
        if self.schedule is not None and any(amount is not None and amount.threshold is not None for amount in amounts):
            raise ValueError("a threshold is the same in every round: give another amount, or no schedule")
        return self


def _given(part: Strict) -> list[str]:
    """The fields that are not null."""
    return [name for name in type(part).model_fields if getattr(part, name) is not None]


def _exactly_one_of(part: Strict) -> None:
    if len(_given(part)) != 1:
        *names, last = type(part).model_fields
        raise ValueError(f"give exactly one of {', '.join(names)}{' and ' if names else ''}{last}")
