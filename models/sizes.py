"""How large a network is for any number of units that its groups keep: polynomials found at inspection, so that sizes
after a cut are known without running, or even reading, the network. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

Term = tuple[int, tuple[int, ...]]
"""A coefficient, and the groups (places in the inspection's `groups`) whose kept units multiply it."""


class Polynomials(BaseModel):
    """Each quantity as a sum of terms. `parameters` count a shared one once; `macs` are multiply-accumulates for one
    sample; `bytes` are those of all parameters and buffers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: tuple[Term, ...]
    macs: tuple[Term, ...]
    bytes: tuple[Term, ...]


class Sizes(BaseModel):
    """`most` is what is left at most when a group keeps so many units, `least` at least. They differ only where units
    of one group are not of one size; `least` is left out where it is the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    most: Polynomials
    least: Polynomials | None = None

    @property
    def exact(self) -> bool:
        return self.least is None


QUANTITIES = ("parameters", "macs", "bytes")


def evaluate(terms: Sequence[Term], kept: Sequence[int]) -> int:
    """The value when group i keeps `kept[i]` units."""
    return sum(coefficient * math.prod([kept[group] for group in groups]) for coefficient, groups in terms)
