"""Gradients on, for as long as something needs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def trainable(network: nn.Module) -> Iterator[None]:
    """Gradients on for every floating-point parameter inside the block; flags as before, and eval mode, after it."""
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    try:
        yield
    finally:
        network.eval()
        for name, parameter in network.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(flags[name])
