"""How far two lists of outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

SQNR_LIMIT_DB = 150.0
"""Reported for outputs that agree to the last digit: single precision holds no more. Minus this for pure noise."""


def outputs_of(result: Any) -> tuple[Tensor, ...]:
    """The tensors a network returned, in order, whatever holds them."""
    if isinstance(result, Tensor):
        return (result,)
    if isinstance(result, dict):
        result = list(result.values())
    return tuple(tensor for part in result for tensor in outputs_of(part)) if result is not None else ()


def max_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest absolute difference; infinite when the shapes differ or only one side is not a number."""
    return max((_difference(a, b) for a, b in _pairs(expected, found)), default=0.0)


def relative_difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Largest absolute difference over the largest finite magnitude of the same expected output; worst output."""
    worst = 0.0
    for a, b in _pairs(expected, found):
        finite = a[torch.isfinite(a)].double().abs() if a.is_floating_point() else a.double().abs()
        magnitude = finite.max().item() if finite.numel() else 0.0
        difference = _difference(a, b)
        worst = max(worst, difference / magnitude if magnitude > 0 else difference)
    return worst


def sqnr_db(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Signal to quantization-noise ratio of the worst output in dB, `10 log10(sum x^2 / sum (x - y)^2)`."""
    return min((_sqnr_db(a, b) for a, b in _pairs(expected, found)), default=SQNR_LIMIT_DB)


def decibels(signal: float, noise: float) -> float:
    """Powers to a ratio in dB, from -150 to 150; what is not a number counts as all noise."""
    if noise == 0:
        return SQNR_LIMIT_DB
    if signal == 0 or not (math.isfinite(signal) and math.isfinite(noise)):
        return -SQNR_LIMIT_DB
    return max(-SQNR_LIMIT_DB, min(SQNR_LIMIT_DB, 10 * math.log10(signal / noise)))


def top1_agreement(expected: Tensor, found: Tensor) -> float | None:
    """Share of places whose largest entry is the same: over the last dimension of three, as sequences have their
    classes, else over dimension 1. `None` for an output that has no such dimension (fewer than two dimensions, or one
    class) or is not a float."""
    classes = 2 if expected.dim() == 3 else 1
    if expected.dim() < 2 or expected.shape[classes] < 2 or not expected.is_floating_point():
        return None
    if expected.shape != found.shape:
        return 0.0
    return (expected.cpu().argmax(classes) == found.cpu().argmax(classes)).double().mean().item()


def _pairs(expected: Sequence[Tensor], found: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(expected, found, strict=True))
    return [(a.detach().cpu(), b.detach().cpu()) for a, b in pairs]


def _sqnr_db(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return -SQNR_LIMIT_DB
    return decibels(a.double().square().sum().item(), (a.double() - b.double()).square().sum().item())


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return math.inf
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs())
    worst = difference.max().item() if difference.numel() else 0.0
    return worst if not math.isnan(worst) else math.inf
