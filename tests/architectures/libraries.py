"""What the families are built from: timm, torchvision, and random inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests import torchvision_ops
from tests.networks import Example, randomised


def images(side: int = 64, channels: int = 3) -> Tensor:
    """Two images."""
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def timm_network(name: str, side: int = 64, **settings: Any) -> Example:
    """A network of timm by name, ten classes. `settings` make it narrower or shallower."""
    torchvision_ops.declare()
    import timm

    module = timm.create_model(name, pretrained=False, num_classes=10, **settings)
    return randomised(module), (images(side),)


def torchvision_network(name: str, side: int = 64, **settings: Any) -> Example:
    """A network of torchvision by name, ten classes."""
    return torchvision_on(name, (3, side, side), **settings)


def torchvision_on(name: str, shape: tuple[int, ...], **settings: Any) -> Example:
    """A network of torchvision by name, ten classes, for samples of that shape."""
    torchvision_ops.declare()
    import torchvision

    module = torchvision.models.get_model(name, weights=None, num_classes=10, **settings)
    return randomised(module), (torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)),)
