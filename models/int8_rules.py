"""What a `quantize` step to static 8-bit integers leaves out; a part of `rules.py`."""

from __future__ import annotations

from typing import Any

from models.spec import Loss, QatStep, QuantizeStep
from models.spec_int8 import PERCENTILE


def resolve_int8(step: QuantizeStep | QatStep, learnt: Loss) -> QuantizeStep | QatStep:
    """`step` with every default filled in; `learnt` is what the data allows to learn from."""
    filled: dict[str, Any] = {}
    if step.percentile is None and step.uses_percentile():
        filled["percentile"] = PERCENTILE
    if isinstance(step, QatStep) and step.loss is None:
        filled["loss"] = learnt
    return step.model_copy(update=filled)
