"""Sizes that a file claims and no bytes in it vouch for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worker.engine.ingest.rejected import rejected, shown

MAXIMUM_ELEMENTS = 2**48
"""Far more than is ever held, and far from where torch's own arithmetic on sizes ends."""


def empty_tensor(name: str, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor without elements; torch makes strides of the sizes beside its zeros all the same.

    Raises `Failure` (network_rejected).
    """
    if math.prod(max(size, 1) for size in sizes) > MAXIMUM_ELEMENTS:
        raise rejected(f"tensor {shown(name)} is empty but claims the shape {list(sizes)}", shown(name))
    return torch.empty(tuple(sizes), dtype=dtype)


def check_input(name: str, shape: Sequence[int | None]) -> None:
    """Raises `Failure` (network_rejected) unless a network's input can have this shape; `None` may vary."""
    sizes = [size for size in shape if size is not None]
    if any(size <= 0 for size in sizes) or math.prod(sizes) > MAXIMUM_ELEMENTS:
        raise rejected(f"the input {shown(name)} has the shape {list(shape)}", shown(name))
