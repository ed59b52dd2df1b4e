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
