"""Schemes and methods of quantization that need no ranges from data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from models.spec_types import LayerChoice, Strict


class DynamicStep(Strict):
    """8-bit weights in linear layers and LSTMs; what they multiply becomes 8-bit integers at run time, with the range
    it then has. Needs no data."""

    step: Literal["quantize"]
    scheme: Literal["int8"] = "int8"
    method: Literal["dynamic"] = "dynamic"
    layers: Annotated[list[LayerChoice], Field(max_length=1000)] = Field(default=[])
