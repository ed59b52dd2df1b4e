"""How a spec asks for static 8-bit integers: what ranges they cover, what repairs them, which layers stay float."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from models.spec_optimizer import LearningRate
from models.spec_train import Training
from models.spec_types import Floor, Glob, Strict

Ranges = Literal["minmax", "entropy", "percentile", "mse"]
WeightRanges = Literal["minmax", "mse"]
PERCENTILE = 99.99
REDUCE_RANGE: Any = Field(
    default=True,
    description="Weights of 7 bits, which are exact and fast on every processor: x86 ones without VNNI sum two "
    "products in 16 bits and clip there. `false` takes all 8 bits, for files that run on VNNI or ARM only.",
)


class LayerInt8(Strict):
    """What is different for the layers whose names match a glob; the first choice that matches a layer counts."""

    match: Glob
    skip: Literal[True] | None = None
    ranges: Ranges | None = Field(default=None, description="Of the value the layer reads.")
    symmetric: bool | None = Field(default=None, description="Of the value the layer reads.")
    weight_ranges: WeightRanges | None = None

    @model_validator(mode="after")
    def _says_something(self) -> LayerInt8:
        own = (self.ranges, self.symmetric, self.weight_ranges)
        if self.skip and own != (None, None, None):
            raise ValueError("a layer that is skipped has no ranges, symmetric or weight_ranges")
        if not self.skip and own == (None, None, None):
            raise ValueError("give skip, ranges, symmetric or weight_ranges")
        return self


class Int8Choices(Strict):
    """What every way of making static 8-bit integers has in common."""

    calibration_samples: Annotated[int, Field(ge=1, le=100_000)] = 256
    ranges: Literal["minmax", "entropy", "percentile", "mse", "auto"] = Field(
        default="minmax",
        description="What the integers of an activation cover: everything seen (`minmax`), what keeps most information "
        "(`entropy`: Migacz, 2017), a `percentile` of all elements, or what errs least (`mse`). `auto` tries each and "
        "takes the one whose outputs have the least noise on samples that were not calibrated on.",
    )
    percentile: Annotated[float, Field(ge=50, lt=100)] | None = Field(
        default=None, description="Percent of all elements that are covered. Default, where it is used: 99.99."
    )
    symmetric: bool = Field(
        default=False, description="Activations with their zero in the middle of the integers, or at 0 if none is < 0."
    )
    weight_ranges: WeightRanges = Field(
        default="minmax",
        description="What the integers of an output channel's weights cover: all, or what errs least (`mse`).",
    )
    reduce_range: bool = REDUCE_RANGE
    equalize: bool = Field(
        default=False,
        description="First bring channels of unlike size to one size, where only a ReLU or a pooling lies between two "
        "layers; the float network stays the same (Nagel et al., 2019; Meller et al., 2019).",
    )
    bias_correction: bool = Field(
        default=False,
        description="Take from each bias what rounding adds to its channel on average (Nagel et al., 2019).",
    )
    floor: Floor | None = Field(
        default=None,
        description="Keep layers in floating point until no more than this is lost, as few as needed and those first "
        "that alone add most noise; before any training.",
    )
    layers: Annotated[list[LayerInt8], Field(max_length=1000)] = Field(default=[])

    def uses_percentile(self) -> bool:
        return bool({self.ranges, *(choice.ranges for choice in self.layers)} & {"percentile", "auto"})

    def choice_for(self, layer: str) -> LayerInt8 | None:
        """What is different for the layer of this name, if anything is."""
        return next((choice for choice in self.layers if fnmatchcase(layer, choice.match)), None)

    def weight_ranges_of(self, layer: str) -> WeightRanges:
        choice = self.choice_for(layer)
        return (choice.weight_ranges if choice else None) or self.weight_ranges

    def is_skipped(self, layer: str) -> bool:
        choice = self.choice_for(layer)
        return choice is not None and choice.skip is True

    @model_validator(mode="after")
    def _percentile_is_used(self) -> Int8Choices:
        if self.percentile is not None and not self.uses_percentile():
            raise ValueError(
                "percentile is used by the ranges `percentile` and `auto` only: choose one or leave it out"
            )
        return self


class QatStep(Int8Choices, Training):
    """8-bit integers as after training, and then trained while the network computes in them, with the original as
    teacher (Jacob et al., 2018). What is delivered is the better of the two on the validation data."""

    step: Literal["quantize"]
    scheme: Literal["int8"] = "int8"
    method: Literal["qat"]
    learning_rate: LearningRate = Field(
        default=1e-4, description="Peak of the schedule. Default: 1e-4, with `optimizer` as for `finetune`."
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = 3
    learn_scales: bool = Field(
        default=False, description="Learn the scales of weights and activations as well (LSQ: Esser et al., 2020)."
    )

    @model_validator(mode="before")
    @classmethod
    def _gently(cls, value: Any) -> Any:
        """A network that is trained already has little to learn."""
        if not isinstance(value, dict) or "optimizer" in value:
            return value
        return {"learning_rate": 1e-4} | value

    @model_validator(mode="after")
    def _trains_integers(self) -> QatStep:
        if self.regularize is not None:
            raise ValueError("nothing is cut after `quantize`: use `regularize` in a `finetune` step before it")
        if self.keep == "last":
            raise ValueError("the better of the network before and after training is kept: leave `keep` out")
        if self.speed.precision != "float32":
            raise ValueError("8 bits are rounded in float32 alone: leave `speed.precision` out")
        if self.speed.compile is not False:
            raise ValueError("ranges that are watched as they run are not compiled: leave `speed.compile` out")
        return self
