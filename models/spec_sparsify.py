"""How a spec asks for sparse weights: which go together, by which criterion, how many."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from models.criteria import GradientLoss, WeightCriterion
from models.spec_prune import Schedule
from models.spec_types import Fraction, Glob, Strict


def _pair(value: Any) -> Any:
    """A JSON array: where a union's choice is a function of ours, pydantic forgets that it reads JSON."""
    return tuple(value) if isinstance(value, list) else value


class NOfM(Strict):
    """`n` weights of every `m` that lie side by side along a layer's inputs stay: `[2, 4]` is what sparse tensor cores
    run (Mishra et al., 2021)."""

    n_of_m: Annotated[
        tuple[Annotated[int, Field(ge=1, le=63)], Annotated[int, Field(ge=2, le=64)]], BeforeValidator(_pair)
    ]

    @model_validator(mode="after")
    def _fewer_than_all(self) -> NOfM:
        if self.n_of_m[0] >= self.n_of_m[1]:
            raise ValueError("the first number, of weights that stay, must be smaller than the second")
        return self


class Blocks(Strict):
    """Whole blocks of so many outputs by so many inputs go (Gray et al., 2017)."""

    block: Annotated[
        tuple[Annotated[int, Field(ge=1, le=256)], Annotated[int, Field(ge=1, le=256)]], BeforeValidator(_pair)
    ]


def _pattern_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "weights"
    names = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, Strict) else ()
    return next((name for name in ("n_of_m", "block") if name in names), None)


Pattern = Annotated[
    Annotated[Literal["weights"], Tag("weights")] | Annotated[NOfM, Tag("n_of_m")] | Annotated[Blocks, Tag("block")],
    Discriminator(
        _pattern_kind,
        custom_error_type="pattern",
        custom_error_message='give "weights", {"n_of_m": [2, 4]} or {"block": [4, 1]}',
    ),
]
Threshold = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class LayerSparsity(Strict):
    """What is different for the layers whose names match a glob; the first choice that matches a layer counts."""

    match: Glob
    skip: Literal[True] | None = None
    criterion: WeightCriterion | None = None
    amount: Fraction | None = Field(default=None, description="Of each matching layer's weights, ranked on its own.")
    threshold: Threshold | None = None

    @model_validator(mode="after")
    def _says_something(self) -> LayerSparsity:
        if self.skip and (self.criterion, self.amount, self.threshold) != (None, None, None):
            raise ValueError("a layer that is skipped has no criterion, amount or threshold")
        if (self.skip, self.criterion, self.amount, self.threshold) == (None, None, None, None):
            raise ValueError("give skip, criterion, amount or threshold")
        if self.amount is not None and self.threshold is not None:
            raise ValueError("give amount or threshold, not both")
        return self


class SparsifyStep(Strict):
    """Set single weights to zero and keep them there: a smaller download (`"export": ["safetensors"]`), not a faster
    network. Weights of convolutions, linear and recurrent layers; tensors keep their shapes."""

    step: Literal["sparsify"]
    pattern: Pattern = Field(
        default="weights", description="What goes together: single weights, blocks, or all but n of every m."
    )
    criterion: WeightCriterion = Field(
        default="l1", description="What makes a weight matter; a block's score is the mean of its weights' (l2: root)."
    )
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None,
        description="Training samples whose gradients are taken, where a criterion needs any; 512 by default.",
    )
    loss: GradientLoss | None = Field(
        default=None,
        description="What is differentiated, where a criterion needs gradients. Default: `task` with labels and a "
        "task, else `distill`.",
    )
    scope: Literal["global", "layer"] = Field(
        default="global",
        description="One ranking over the network, or the same fraction of every layer. Where one ranking has several "
        "criteria, the scores of each layer are divided by their mean.",
    )
    amount: Fraction | None = Field(
        default=None, description="Fraction of the weights that are zero afterwards; with n of m the pattern says it."
    )
    threshold: Threshold | None = Field(default=None, description="In place of an amount: scores below it go.")
    layers: Annotated[list[LayerSparsity], Field(max_length=1000)] = Field(default=[])
    schedule: Schedule | None = Field(default=None, description="Rounds that raise the amount, with training between.")

    def criteria(self) -> dict[str, WeightCriterion]:
        """Every criterion that is named, by where it stands in the step (a JSON pointer)."""
        own = {f"/layers/{index}/criterion": choice.criterion for index, choice in enumerate(self.layers)}
        return {"/criterion": self.criterion} | {where: name for where, name in own.items() if name is not None}

    @model_validator(mode="after")
    def _amounts_grow(self) -> SparsifyStep:
        fixed = isinstance(self.pattern, NOfM) or self.threshold is not None
        if self.schedule is not None and (fixed or any(choice.threshold is not None for choice in self.layers)):
            raise ValueError("n of m and a threshold are the same in every round: give an amount, or no schedule")
        return self

    @model_validator(mode="after")
    def _how_much(self) -> SparsifyStep:
        if isinstance(self.pattern, NOfM):
            if self.amount is not None or self.threshold is not None:
                raise ValueError("n of m says how much goes: leave amount and threshold out")
            if any(choice.amount is not None or choice.threshold is not None for choice in self.layers):
                raise ValueError("n of m says how much goes: layers may only be skipped or have their own criterion")
        elif self.amount is not None and self.threshold is not None:
            raise ValueError("give amount or threshold, not both")
        elif (self.amount, self.threshold) == (None, None) and not any(
            choice.amount is not None or choice.threshold is not None for choice in self.layers
        ):
            raise ValueError("give amount or threshold, here or for some layers")
        return self
