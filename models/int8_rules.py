"""What a `quantize` step with the scheme `int8` leaves out; a part of `rules.py`."""

from __future__ import annotations

from typing import Any

from models.spec import QuantizeStep
from models.spec_int8 import PERCENTILE


def resolve_int8(step: QuantizeStep) -> QuantizeStep:
    """`step` with every default filled in."""
    filled: dict[str, Any] = {}
    if step.percentile is None and step.uses_percentile():
        filled["percentile"] = PERCENTILE
    return step.model_copy(update=filled)
