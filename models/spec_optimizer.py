"""How a spec chooses the optimizer and how the learning rate moves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from models.spec_types import Strict

RateSchedule = Literal["one_cycle", "cosine", "linear", "constant", "step"]
LearningRate = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | Literal["auto"]
Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
_Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

USUAL_RATES: dict[str, float] = {"adamw": 5e-4, "sgd": 1e-2}
"""Peaks where none is asked for: those of gradients divided by their size, and of gradients as they are."""
USUAL_WARM_UP = 0.1
"""Of a one-cycle schedule; the others begin at their peak."""


class AdamW(Strict):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    name: Literal["adamw"] = "adamw"
    beta1: _Momentum = 0.9
    beta2: _Momentum = 0.999


class Sgd(Strict):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013)."""

    name: Literal["sgd"] = "sgd"
    momentum: _Momentum = 0.9
    nesterov: bool = Field(default=True, description="Look ahead. Default: false where `momentum` is 0.")

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_look_ahead_with(cls, value: Any) -> Any:
        return {"nesterov": False} | value if isinstance(value, dict) and value.get("momentum") == 0 else value

    @model_validator(mode="after")
    def _ahead_by_the_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("`nesterov` looks ahead by the momentum, and that is 0: leave it out")
        return self


def _by_name(value: Any) -> Any:
    """`"sgd"` is short for `{"name": "sgd"}`."""
    return {"name": value} if isinstance(value, str) else value


Optimizer = Annotated[Annotated[AdamW | Sgd, Field(discriminator="name")], BeforeValidator(_by_name)]


def usual(value: Any) -> Any:
    """A training's fields with the defaults that follow from others filled in, where `value` is a dict of them."""
    if not isinstance(value, dict):
        return value
    optimizer = _by_name(value.get("optimizer", "adamw"))
    name = optimizer.get("name") if isinstance(optimizer, dict) else getattr(optimizer, "name", None)
    filled = {
        "learning_rate": USUAL_RATES.get(str(name), USUAL_RATES["adamw"]),
        "warm_up": USUAL_WARM_UP if value.get("rate_schedule", "one_cycle") == "one_cycle" else 0.0,
        "keep": "best" if value.get("regularize") is None else "last",
    }
    return filled | value
