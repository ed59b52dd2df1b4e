"""Schemes and methods of quantization that need no ranges from data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.spec_int8 import REDUCE_RANGE
from models.spec_types import LayerChoice, Strict


class DynamicStep(Strict):
    """8-bit weights in linear layers and LSTMs; what they multiply becomes 8-bit integers at run time, with the range
    it then has. Needs no data."""

    step: Literal["quantize"]
    scheme: Literal["int8"] = "int8"
    method: Literal["dynamic"] = "dynamic"
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])


class AutoStep(Strict):
    """8-bit integers by region: convolutions, and linear layers, with ranges from data; LSTMs, and without data linear
    layers, with ranges at run time; whatever else has a weight stores it in 8 bits and computes in floating point."""

    step: Literal["quantize"]
    scheme: Literal["int8"] = "int8"
    method: Literal["auto"] = "auto"
    calibration_samples: Annotated[int, Field(ge=1, le=100_000)] = 256
    reduce_range: bool = REDUCE_RANGE
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])


class StoredStep(Strict):
    """8-bit weights that are computed with in floating point: a smaller file, and no other gain. Needs no data."""

    step: Literal["quantize"]
    scheme: Literal["int8"] = "int8"
    method: Literal["weights"] = "weights"
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])


class FloatStep(Strict):
    """Weights in half precision (`fp16`) or bfloat16 (`bf16`), computed with in single precision; inputs and outputs
    stay as they are. Needs no data."""

    step: Literal["quantize"]
    scheme: Literal["fp16", "bf16"]
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])


class Fp8Step(Strict):
    """Weights in 8-bit floating point with one scale a row (Micikevicius et al., 2022), computed with in single
    precision. Needs no data."""

    step: Literal["quantize"]
    scheme: Literal["fp8"]
    format: Literal["e4m3", "e5m2"] = "e4m3"
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])


Storage = StoredStep | FloatStep | Fp8Step
"""The steps that change how weights are stored, not how a network computes."""
