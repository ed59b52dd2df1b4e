"""Whether samples make three parts: what the engine draws by, known before anything is queued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

SplitName = Literal["train", "val", "test"]
HELD_OUT = 0.1
"""The share that is drawn for a part that is missing."""
MINIMUM_SAMPLES = 3


def drawn_from(samples: int) -> int:
    """How many of so many samples to train on become `val`, where the data has none."""
    return min(max(1, round(samples * HELD_OUT)), samples - 1)


def why_no_three_parts(samples: int, given: Mapping[SplitName, int] | None) -> str | None:
    """What is wrong and the remedy; `None`: train, val and test all get samples. `given`: how many the data marks."""
    if given is None:
        if samples < MINIMUM_SAMPLES:
            return f"{samples} samples cannot be split into train, val and test; send at least {MINIMUM_SAMPLES}."
        return None
    train, val, test = (given.get(name, 0) for name in ("train", "val", "test"))
    if not train:
        return "The split has no 'train' samples; mark the samples to train on, or leave the split out."
    if not val and train < 2:
        return "The split has no 'val' samples; mark some samples as val."
    if not test and (val or drawn_from(train)) < 2:
        return "The split has no 'test' samples; mark some samples as test."
    return None
