"""Weights that stay zero: what training does so that they do, and what a cut does to their masks.

A mask is a bool tensor of its parameter's shape, true where the weight may be anything; see `Subject.masks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from worker.engine.graph.channels import Channels
from worker.engine.graph.cut import Cut, smaller

Masks = Mapping[str, Tensor]


def mask_weights(network: nn.Module, masks: Masks) -> None:
    """Set what is masked to zero, and to no negative zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            parameter = network.get_parameter(name)
            parameter.masked_fill_(~mask.to(parameter.device), 0.0)


def mask_gradients(network: nn.Module, masks: Masks) -> None:
    """Set the gradient of what is masked to zero, in place: it moves nothing, so it has no say in the norm either."""
    for name, mask in masks.items():
        gradient = network.get_parameter(name).grad
        if gradient is not None:
            gradient.masked_fill_(~mask.to(gradient.device), 0.0)


def cut_masks(masks: Masks, channels: Channels, removed: Iterable[int]) -> dict[str, Tensor]:
    """The masks of the network that is left when `removed` units go: the same indices go from a weight and its mask."""
    plan = Cut(channels, removed)
    return {
        name: smaller(mask, channels.parameters.get(name, [None] * mask.dim()), plan) for name, mask in masks.items()
    }
