"""What a person reads about a network."""

from __future__ import annotations

import pytest

from tests.engine.subjects import subject_of
from tests.networks import NETWORKS
from worker.engine.graph.describe import describe_network


def test_layers_have_names_sizes_costs_groups_and_reasons() -> None:
    described = describe_network(subject_of("resnet18"), "pt2")
    layers = {layer.name: layer for layer in described.layers}
    stem, last = layers["conv1"], layers["fc"]
    assert (stem.kind, stem.shape, stem.parameters) == ("Conv2d", [16, 3, 3, 3], 432)
    assert stem.macs == 432 * 32 * 32
    assert (stem.group, stem.prunable, stem.reason) == ("conv1", True, None)
    assert (last.group, last.prunable, last.reason) == (None, False, "feeds the output of the network")
    residual = next(group for group in described.groups if group.id == "conv1")
    assert residual.units == 16
    assert residual.layers == ["conv1", "bn1", *(f"layer1.{i}.{name}2" for i in (0, 1) for name in ("conv", "bn"))]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sums_are_the_totals(name: str) -> None:
    described = describe_network(subject_of(name), "pt2")
    tied = 960 if name == "tied_language_model" else 0
    assert sum(layer.parameters for layer in described.layers) == described.parameters + tied
    assert sum(layer.macs for layer in described.layers) == described.macs > 0
    assert all((layer.group is None) == (layer.reason is not None) for layer in described.layers)


def test_attention_and_raw_parameters_are_listed() -> None:
    layers = {layer.name: layer for layer in describe_network(subject_of("vit"), "pt2").layers}
    assert layers["cls_token"].kind == "Parameter"
    assert layers["cls_token"].group == "patch_embed"
    attention = next(layer for layer in layers.values() if layer.kind == "scaled_dot_product_attention")
    assert attention.macs == 2 * 4 * 17 * 17 * 12
    assert attention.reason == "has no channels of its own: it follows the layers that feed it"
