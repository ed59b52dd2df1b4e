# mypy: disable-error-code="no-untyped-call, call-arg"
"""A few networks as people really build them, from timm and transformers, by configuration and with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.networks import Example, randomised


@functools.cache
def _torchvision_can_be_imported() -> torch.library.Library:
    """torchvision's extension may be built for CUDA; its import then needs two operators to be declared first."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        torch.ops.torchvision.nms  # noqa: B018
    except AttributeError:
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def _timm(name: str, side: int = 64, **settings: Any) -> Example:
    _torchvision_can_be_imported()
    import timm

    module = timm.create_model(name, pretrained=False, num_classes=10, **settings)
    return randomised(module), (torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)),)


class Logits(nn.Module):
    """The part of a transformers model that a person exports: tokens and mask in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def bert() -> Example:
    _torchvision_can_be_imported()
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=3,
    )
    module = Logits(BertForSequenceClassification(config))
    tokens = torch.randint(1, 100, (2, 12), generator=torch.Generator().manual_seed(1))
    return randomised(module), (tokens, torch.ones_like(tokens))


ARCHITECTURES: dict[str, Callable[[], Example]] = {
    "timm_resnet18": lambda: _timm("resnet18"),
    "timm_mobilenetv3_small": lambda: _timm("mobilenetv3_small_050"),
    "timm_vit_tiny": lambda: _timm("vit_tiny_patch16_224", img_size=64, depth=2),
    "transformers_bert": bert,
}
