# mypy: disable-error-code="no-untyped-call, call-arg"
"""Transformers, vision transformers, recurrent networks, audio; several inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests import torchvision_ops
from tests.architectures.libraries import timm_network
from tests.architectures.registry import Registry
from tests.networks import Example, randomised


class Logits(nn.Module):
    """The part of a transformers model that a person exports: tokens and mask in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def bert() -> Example:
    torchvision_ops.declare()
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


SEQUENCE: Registry = {
    "vit_tiny": lambda: timm_network("vit_tiny_patch16_224", img_size=64, depth=2),
    "bert": bert,
}
