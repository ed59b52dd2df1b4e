"""What is rounded and what is not, family by family."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from tests.engine.subjects import subject_of
from worker.engine.quantize.fold import fold
from worker.engine.quantize.placement import Placement, place


def placed(name: str, *skip: str) -> tuple[fx.GraphModule, Placement, dict[str, fx.Node]]:
    subject = subject_of(name)
    graph = fold(subject.graph, subject.example_inputs())
    return graph, place(graph, skip), {node.name: node for node in graph.graph.nodes}


def calls(graph: fx.GraphModule, *kinds: type[nn.Module]) -> list[fx.Node]:
    modules = [node for node in graph.graph.nodes if node.op == "call_module"]
    return [node for node in modules if isinstance(graph.get_submodule(node.target), kinds)]


def reads_rounded(placement: Placement, node: fx.Node) -> bool:
    return all(node.name in placement.users.get(value.name, ()) for value in node.all_input_nodes)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "convnext", "unet", "vit", "bert", "two_towers"])
def test_every_8_bit_layer_reads_a_rounded_value(name: str) -> None:
    graph, placement, _ = placed(name)
    layers = [node for node in calls(graph, nn.Conv1d, nn.Conv2d, nn.Linear) if node.target in placement.layers]
    assert layers
    assert all(reads_rounded(placement, node) for node in layers)


@pytest.mark.parametrize("name", ["resnet18", "densenet", "convnext", "unet", "efficientnet"])
def test_the_output_of_every_convolution_is_rounded_once_after_its_relu(name: str) -> None:
    graph, placement, _ = placed(name)
    for node in calls(graph, nn.Conv2d):
        users = list(node.users)
        relu = len(users) == 1 and users[0].target is torch.ops.aten.relu.default
        assert (users[0].name if relu else node.name) in placement.users
        assert not (relu and node.name in placement.users)


def test_the_whole_chain_of_a_residual_network_is_8_bit() -> None:
    _, placement, nodes = placed("resnet18")
    adds = [node for node in nodes.values() if node.target is torch.ops.aten.add.Tensor]
    assert len(adds) == 6
    assert all(reads_rounded(placement, node) for node in adds)
    (pool,) = (node for node in nodes.values() if node.target is torch.ops.aten.max_pool2d.default)
    assert placement.sources[pool.name] == pool.all_input_nodes[0].name
    assert placement.kept_float == {}


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_transformer_rounds_only_what_its_linear_layers_read(name: str) -> None:
    graph, placement, nodes = placed(name)
    convolutions = calls(graph, nn.Conv2d)
    around_convolutions = {value.name for node in convolutions for value in (node, *node.all_input_nodes)}
    linear = {node.name for node in calls(graph, nn.Linear)}
    for value, users in placement.users.items():
        assert value in around_convolutions or set(users) <= linear
    for node in nodes.values():
        if node.target in (torch.ops.aten.softmax.int, torch.ops.aten.scaled_dot_product_attention.default):
            assert not any(value.name in placement.users for value in node.all_input_nodes)
    for node in calls(graph, nn.LayerNorm):
        assert not reads_rounded(placement, node)


def test_skipped_layers_stay_float() -> None:
    graph, placement, _ = placed("resnet18", "fc", "layer3.*")
    assert set(placement.kept_float) == {"fc", *(name for name in placement.kept_float if name.startswith("layer3."))}
    assert "layer3.0.conv1" in placement.kept_float
    assert set(placement.kept_float.values()) == {"skipped by `layers`"}
    assert not {node.name for node in calls(graph, nn.Linear)} & {u for us in placement.users.values() for u in us}


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("unet", "up2", "transposed convolutions"),
        ("lstm", "lstm", "recurrent"),
        ("gru", "gru", "recurrent"),
        ("bert", "word", "looked up"),
        ("tied_language_model", "head", "shared with another layer"),
    ],
)
def test_a_layer_that_stays_float_says_why(name: str, layer: str, reason: str) -> None:
    _, placement, _ = placed(name)
    assert reason in placement.kept_float[layer]
    assert layer not in placement.layers
