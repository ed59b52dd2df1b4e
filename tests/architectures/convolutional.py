"""Convolutional classifiers."""

from __future__ import annotations

from tests.architectures.libraries import timm_network
from tests.architectures.registry import Registry

CONVOLUTIONAL: Registry = {
    "resnet18": lambda: timm_network("resnet18"),
    "mobilenetv3_small": lambda: timm_network("mobilenetv3_small_050"),
}
