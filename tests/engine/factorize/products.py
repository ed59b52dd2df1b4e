"""Factors multiplied out again, for tests to hold networks of parts against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.factors import Way


def multiplied_out(layer: Any, weights: Sequence[Tensor], way: Way) -> Tensor:
    """The weight of `layer`, laid out as torch has it, that these of its parts are the product of."""
    if way == "spatial":
        column, row = weights[0].squeeze(-1), weights[1].squeeze(2)
        return torch.einsum("rih,orw->oihw", column, row)
    if way == "cp":
        first, middle, last = weights
        return torch.einsum("or,r...,ri->oi...", last.flatten(1), middle.squeeze(1), first.flatten(1))
    if way in ("matrix", "channels"):
        first, second = weights
        return torch.einsum("or,ri...->oi...", second.flatten(1), first)
    shape = tuple(layer.kernel_size)
    place = len(weights) - 2 if len(weights) == 3 else next(i for i, w in enumerate(weights) if w.shape[2:] == shape)
    kernel = weights[place].transpose(0, 1) if layer.transposed else weights[place]
    for weight in weights[:place]:
        kernel = torch.einsum("sr...,ri->si...", kernel, weight.flatten(1))
    for weight in weights[place + 1 :]:
        kernel = torch.einsum("os,si...->oi...", weight.flatten(1), kernel)
    return kernel.transpose(0, 1) if layer.transposed else kernel
