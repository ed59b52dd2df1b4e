"""Networks as people have them: from timm and transformers, through a file, cut by half."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.graph.cuts import halve_and_prove
from tests.engine.subjects import lifted
from tests.networks import randomised
from worker.engine.graph.cost import parameters


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """A CUDA build of torchvision cannot load beside a CPU-only torch; timm then needs two of its schemas declared."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("timm")
    del library


@pytest.mark.parametrize(
    ("name", "side", "left"),
    [
        ("resnet18", 64, 0.26),
        ("mobilenetv3_small_050", 64, 0.28),
        ("convnext_atto", 64, 0.27),
        ("vit_tiny_patch16_224", 224, 0.30),
    ],
)
def test_networks_of_timm_are_cut_by_half(timm: Any, name: str, side: int, left: float, tmp_path: Path) -> None:
    network = randomised(timm.create_model(name, pretrained=False, num_classes=10))
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    subject = lifted(network, (x,), tmp_path)
    before = parameters(subject.graph)
    assert before == sum(parameter.numel() for parameter in network.parameters())
    halve_and_prove(subject.graph, (x,))
    assert parameters(subject.graph) < left * before


class Logits(nn.Module):
    """A transformers network with tensors in and one tensor out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.network(input_ids=tokens).logits
        return logits


def test_bert_and_llama_are_cut_by_half(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bert = transformers.BertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=100, num_labels=3
    )
    llama = transformers.LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=100,
        use_cache=False,
    )
    tokens = torch.randint(1, 100, (2, 16), generator=torch.Generator().manual_seed(0))
    for network in (transformers.BertForSequenceClassification(bert), transformers.LlamaForCausalLM(llama)):
        subject = lifted(randomised(Logits(network)), (tokens,), tmp_path)
        before = parameters(subject.graph)
        halve_and_prove(subject.graph, (tokens,))
        assert parameters(subject.graph) < 0.45 * before
