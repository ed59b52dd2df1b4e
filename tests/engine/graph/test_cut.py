"""Every network of tests/networks.py loses half of every group."""

# mypy: disable-error-code="comparison-overlap"
from __future__ import annotations

import copy

import pytest
import torch

from tests.engine.graph.cuts import difference, halve, halve_and_prove, tensors
from tests.engine.subjects import subject_of
from tests.networks import NETWORKS
from worker.engine.graph.channels import analyse
from worker.engine.graph.cost import parameters
from worker.engine.graph.cut import cut


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_equals_the_masked_one_and_trains(name: str) -> None:
    subject, (_, inputs) = subject_of(name), NETWORKS[name]()
    before = parameters(subject.graph)
    halved = halve_and_prove(subject.graph, inputs)
    assert parameters(halved.after) < 0.4 * before


@pytest.mark.parametrize("name", ["resnet18", "vit", "bert", "lstm", "gru"])
def test_a_cut_network_still_takes_any_batch(name: str) -> None:
    subject, (_, inputs) = subject_of(name), NETWORKS[name]()
    halved = halve(subject.graph, inputs)
    five = tuple(torch.cat([tensor, tensor, tensor[:1]]) for tensor in inputs)
    two = tensors(halved.after(*inputs))
    for result, expected in zip(tensors(halved.after(*five)), two, strict=True):
        torch.testing.assert_close(result[:2], expected)


@pytest.mark.parametrize("name", ["resnet18", "densenet", "unet", "vgg", "mobilenet_v3"])
def test_zeroing_weights_alone_is_the_same_where_nothing_runs_over_channels(name: str) -> None:
    """A second oracle that knows no labels of values: the plain uncut network with zeros in its parameters."""
    subject, (_, inputs) = subject_of(name), NETWORKS[name]()
    halved = halve(subject.graph, inputs)
    state = halved.before.state_dict()
    for parameter, axes in halved.channels.parameters.items():
        for dim, axis in enumerate(axes):
            if axis is not None:
                lost = [i for i, unit in enumerate(halved.channels.units_of(axis)) if unit in set(halved.removed)]
                state[parameter].index_fill_(dim, torch.tensor(lost, dtype=torch.int64), 0)
    assert difference(halved.before(*inputs), halved.after(*inputs)) < 1e-5


def test_shared_parameters_stay_shared() -> None:
    subject, (_, inputs) = subject_of("tied_language_model"), NETWORKS["tied_language_model"]()
    halved = halve(subject.graph, inputs)
    weights = [
        parameter
        for name, parameter in halved.after.named_parameters(remove_duplicate=False)
        if tuple(parameter.shape) == (40, 12)
    ]
    assert len(weights) == 2
    assert weights[0] is weights[1]


def test_names_and_requires_grad_survive_a_cut() -> None:
    subject, (_, inputs) = subject_of("resnet18"), NETWORKS["resnet18"]()
    frozen = dict(subject.graph.named_parameters())["layer1.0.conv1.weight"]
    frozen.requires_grad_(False)
    names = [name for name, _ in subject.graph.named_parameters()], list(subject.graph.state_dict())
    halved = halve(subject.graph, inputs)
    assert ([name for name, _ in halved.after.named_parameters()], list(halved.after.state_dict())) == names
    grads = {name for name, parameter in halved.after.named_parameters() if not parameter.requires_grad}
    assert grads == {"layer1.0.conv1.weight"}


def test_layers_know_their_new_sizes() -> None:
    subject, (_, inputs) = subject_of("mobilenet_v3"), NETWORKS["mobilenet_v3"]()
    after = halve(subject.graph, inputs).after
    depthwise = after.get_submodule("blocks.0.depthwise.0")
    assert (depthwise.groups, depthwise.in_channels, depthwise.out_channels) == (16, 16, 16)
    assert after.get_submodule("blocks.0.depthwise.1").num_features == 16
    classifier = after.get_submodule("classifier.3")
    assert (classifier.in_features, classifier.out_features) == (24, 10)


def test_the_same_ids_repeat_a_cut_on_an_equal_network() -> None:
    subject, (_, inputs) = subject_of("vit"), NETWORKS["vit"]()
    again = copy.deepcopy(subject.graph)
    halved = halve(subject.graph, inputs)
    ids = cut(analyse(again, inputs), halved.removed)
    assert ids.dtype == torch.int64
    assert ids.tolist() == sorted(halved.removed)
    assert again.code == halved.after.code
    for name, tensor in halved.after.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
