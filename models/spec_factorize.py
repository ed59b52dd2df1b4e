"""How a spec asks for low rank: which layers become products of thinner ones, and how thin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from models.spec_prune import Left, RoundTo
from models.spec_types import Count, Fraction, Glob, Strict

FactorMethod = Literal["tucker", "channels", "spatial", "cp"]
Fit = Literal["weights", "outputs"]
FactorQuantity = Literal["parameters", "macs", "bytes"]
ROUND_TO = 8


class Rank(Strict):
    """How many singular values a layer keeps, said in exactly one way. Tucker has two ranks, of inputs and of outputs,
    and each follows the same rule."""

    energy: Fraction | None = Field(
        default=None, description="As few as hold this share of the sum of all squared singular values."
    )
    ratio: Fraction | None = Field(default=None, description="This share of the full rank.")
    count: Count | None = Field(default=None, description="So many, whatever `round_to` says.")
    vbmf: Literal[True] | None = Field(
        default=None,
        description="As many as stand out of noise, by the analytic solution of empirical variational Bayesian matrix "
        "factorization (Nakajima et al., JMLR 2013), as Kim et al. (ICLR 2016) choose them.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Rank:
        _exactly_one_of(self)
        return self


class FactorTarget(Strict):
    """What is left of the whole network in the end, of exactly one quantity."""

    parameters: Left | None = None
    macs: Left | None = Field(default=None, description="Multiply-accumulates for one sample.")
    bytes: Left | None = Field(default=None, description="Of the weights in a file: parameters and buffers.")

    @model_validator(mode="after")
    def _exactly_one(self) -> FactorTarget:
        _exactly_one_of(self)
        return self


class FactorAmount(Strict):
    """How much of the whole network goes, said in exactly one way."""

    parameters: Fraction | None = None
    macs: Fraction | None = None
    bytes: Fraction | None = Field(default=None, description="Of the weights in a file: parameters and buffers.")
    target: FactorTarget | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> FactorAmount:
        _exactly_one_of(self)
        return self

    @property
    def quantity(self) -> FactorQuantity:
        return _given(self.target if self.target is not None else self)[0]  # type: ignore[return-value]

    def left_of(self, before: int) -> float:
        """What is to be left of the quantity, of which there is `before`."""
        if self.target is not None:
            return float(getattr(self.target, self.quantity))
        return before * (1 - float(getattr(self, self.quantity)))


class FactorChoice(Strict):
    """What is different for the layers whose names match a glob; the first choice that matches a layer counts."""

    match: Glob
    skip: Literal[True] | None = None
    method: FactorMethod | None = None
    rank: Rank | None = Field(default=None, description="Of each matching layer; the step's `amount` is of the rest.")

    @model_validator(mode="after")
    def _says_something(self) -> FactorChoice:
        if self.skip and (self.method, self.rank) != (None, None):
            raise ValueError("a layer that is skipped has no method or rank")
        if (self.skip, self.method, self.rank) == (None, None, None):
            raise ValueError("give skip, method or rank")
        return self


class FactorizeStep(Strict):
    """Put thinner layers, one after the other, in the place of a linear or convolutional one: `fc` becomes `fc.0` and
    `fc.1`. A layer stays whole where that would save no parameters or no multiply-accumulates."""

    step: Literal["factorize"]
    method: FactorMethod | None = Field(
        default=None,
        description="How kernels of more than one position are taken apart. `tucker`: fewer inputs, a small kernel, "
        "more outputs (Tucker-2, Kim et al., ICLR 2016). `channels`: the kernel with fewer outputs, then all outputs "
        "(Zhang et al., TPAMI 2016). `spatial`: a column, then a row (Jaderberg et al., BMVC 2014). `cp`: inputs "
        "mixed, a kernel for each, mixed again (Lebedev et al., ICLR 2015); without singular values, so its rank is a "
        "`count` or a `ratio`. Matrices are taken apart by their singular values in every case. Default: `tucker`, and "
        "`channels` where outputs are fitted.",
    )
    rank: Rank | None = Field(default=None, description="Of every layer; without one, give `amount`.")
    amount: FactorAmount | None = Field(
        default=None,
        description="Of the whole network, in place of ranks: singular values go where the least energy is lost for "
        "what is saved.",
    )
    fit: Fit = Field(
        default="weights",
        description="What is kept as it was: the weights, or the layer's outputs on training samples, by weighing "
        "inputs by their second moments (Chen et al., NeurIPS 2021; Wang et al., ICLR 2025). Needs data, no labels.",
    )
    samples: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Training samples that are looked at where outputs are fitted. Default: 256."
    )
    round_to: RoundTo = Field(
        default=ROUND_TO, description="Ranks are a multiple of this; odd counts are slow on most hardware."
    )
    layers: Annotated[list[FactorChoice], Field(max_length=1000)] = Field(default=[])

    @model_validator(mode="after")
    def _how_much(self) -> FactorizeStep:
        if self.rank is not None and self.amount is not None:
            raise ValueError("give rank or amount, not both")
        if (self.rank, self.amount) == (None, None) and all(choice.rank is None for choice in self.layers):
            raise ValueError("give rank or amount, or a rank for some layers")
        return self

    @model_validator(mode="after")
    def _ranks_of_cp_are_said(self) -> FactorizeStep:
        asked = [(self.method, self.rank)]
        asked += [(own.method or self.method, own.rank or self.rank) for own in self.layers if not own.skip]
        for method, rank in asked:
            by_values = self.amount is not None if rank is None else (rank.count, rank.ratio) == (None, None)
            if method == "cp" and by_values:
                raise ValueError("cp has no singular values to choose a rank by: give rank as count or ratio")
        return self

    @model_validator(mode="after")
    def _something_is_rounded(self) -> FactorizeStep:
        ranks = [rank for rank in (self.rank, *(own.rank for own in self.layers)) if rank is not None]
        if self.round_to != ROUND_TO and self.amount is None and all(rank.count is not None for rank in ranks):
            raise ValueError("every rank is a count, which round_to does not touch: leave round_to out")
        return self

    @model_validator(mode="after")
    def _what_outputs_allow(self) -> FactorizeStep:
        if self.fit == "weights":
            if self.samples is not None:
                raise ValueError("samples are looked at where outputs are fitted alone: leave samples out")
            return self
        if any(method not in (None, "channels") for method in (self.method, *(own.method for own in self.layers))):
            raise ValueError("outputs are fitted by the method `channels` alone: leave method out, or fit weights")
        if any(rank is not None and rank.vbmf for rank in (self.rank, *(own.rank for own in self.layers))):
            raise ValueError("vbmf is about noise in weights: give another rank, or fit weights")
        return self


def _given(part: Strict) -> list[str]:
    """The fields that are not null."""
    return [name for name in type(part).model_fields if getattr(part, name) is not None]


def _exactly_one_of(part: Strict) -> None:
    if len(_given(part)) != 1:
        *names, last = type(part).model_fields
        raise ValueError(f"give exactly one of {', '.join(names)} and {last}")
