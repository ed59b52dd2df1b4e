# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from tests.networks import NETWORKS, Example, export_pt2, randomised
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.subject import Subject

_LAYERS = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Linear,
    nn.Embedding,
    nn.PReLU,
    nn.RNNBase,
)


def lifted(example: Example, folder: Path) -> Subject:
    module, args = example
    return lift(read_network(export_pt2(module, args, folder / "network.pt2")))


@functools.cache
def _exported(name: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return export_pt2(*NETWORKS[name](), Path(folder) / "network.pt2").read_bytes()


def lifted_network(name: str, folder: Path) -> Subject:
    """The network `name`, exported once for all tests."""
    path = folder / "network.pt2"
    path.write_bytes(_exported(name))
    return lift(read_network(path))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_lifted_network_gives_the_same_bits_at_any_batch_size(name: str, tmp_path: Path) -> None:
    module, _ = NETWORKS[name]()
    subject = lifted_network(name, tmp_path)
    for batch in (1, 3):
        inputs = subject.example_inputs(batch, seed=batch)
        with torch.no_grad():
            expected, structure = tree_flatten(module(*[value.clone() for value in inputs]))
            found, found_structure = tree_flatten(subject.graph(*inputs))
        assert structure == found_structure
        for left, right in zip(expected, found, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_its_own_name_kind_and_settings(name: str, tmp_path: Path) -> None:
    module, _ = NETWORKS[name]()
    subject = lifted_network(name, tmp_path)
    found = dict(subject.graph.named_modules())
    for path, layer in module.named_modules():
        if isinstance(layer, _LAYERS):
            kind = nn.LayerNorm if isinstance(layer, nn.LayerNorm) else type(layer)
            assert type(found[path]) is kind, path
            assert found[path].extra_repr() == layer.extra_repr(), path
    original, new = dict(module.named_parameters()), dict(subject.graph.named_parameters())
    assert {subject.renames.get(path, path) for path in original} == set(new)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_parameter(name: str, tmp_path: Path) -> None:
    subject = lifted_network(name, tmp_path)
    subject.graph.train()
    outputs, _ = tree_flatten(subject.graph(*subject.example_inputs(4)))
    sum((output.square().sum() for output in outputs), torch.zeros(())).backward()
    without = [path for path, parameter in subject.graph.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "densenet", "unet", "gru"])
def test_training_updates_batch_statistics_exactly_as_the_original_does(name: str, tmp_path: Path) -> None:
    module, _ = NETWORKS[name]()
    subject = lifted_network(name, tmp_path)
    for network in (module, subject.graph):
        network.train()
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.eval()
    for seed in (1, 2):
        inputs = subject.example_inputs(4, seed=seed)
        module(*[value.clone() for value in inputs])
        subject.graph(*inputs)
    compared = 0
    found = dict(subject.graph.named_buffers())
    for path, buffer in module.named_buffers():
        if path.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(found[path], buffer), path
            compared += 1
    assert compared >= 3


def test_the_original_stays_as_it_was_when_the_network_is_trained(tmp_path: Path) -> None:
    subject = lifted_network("resnet18", tmp_path)
    inputs = subject.example_inputs(2)
    before = subject.original(*inputs)
    with torch.no_grad():
        for parameter in subject.graph.parameters():
            parameter.add_(0.1)
    assert torch.equal(subject.original(*inputs), before)
    assert not any(parameter.requires_grad for parameter in subject.original.parameters())
    assert all(parameter.requires_grad for parameter in subject.graph.parameters())


def test_tied_parameters_stay_one_object_under_both_names(tmp_path: Path) -> None:
    graph = lifted_network("tied_language_model", tmp_path).graph
    assert graph.get_parameter("embedding.weight") is graph.get_parameter("head.weight")
    copied = copy.deepcopy(graph)
    assert copied.get_parameter("embedding.weight") is copied.get_parameter("head.weight")


def test_a_product_with_a_parameter_is_a_linear_layer_and_its_rename_is_told(tmp_path: Path) -> None:
    module, _ = NETWORKS["tied_language_model"]()
    subject = lifted_network("tied_language_model", tmp_path)
    assert isinstance(subject.graph.get_submodule("mix"), nn.Linear)
    assert subject.renames == {"mix": "mix.weight"}
    assert torch.equal(subject.graph.get_parameter("mix.weight"), module.get_parameter("mix").t())


def test_a_layer_called_twice_is_one_module_called_twice(tmp_path: Path) -> None:
    graph = lifted_network("two_towers", tmp_path).graph
    calls = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == "shared"]
    assert len(calls) == 2


def test_outputs_and_inputs_keep_their_names_and_structure(tmp_path: Path) -> None:
    subject = lifted_network("two_towers", tmp_path)
    assert [info.name for info in subject.inputs] == ["image", "features"]
    assert [info.name for info in subject.outputs] == ["logits", "profile"]
    assert [info.shape for info in subject.outputs] == [[None, 3], [None, 6, 32]]
    assert list(subject.graph(*subject.example_inputs(2))) == ["logits", "profile"]


def _small(module: nn.Module, *args: Tensor, folder: Path) -> tuple[nn.Module, Subject]:
    module = randomised(module)
    return module, lifted((module, args), folder)


def test_in_place_operators_without_users_survive(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(x)
            F.relu_(y)
            torch.sin(y)
            return y + 1

    module, subject = _small(InPlace(), torch.randn(2, 4), folder=tmp_path)
    inputs = subject.example_inputs(5)
    assert torch.equal(module(*inputs), subject.graph(*inputs))
    names = [str(node.target) for node in subject.graph.graph.nodes]
    assert "aten.relu_.default" in names
    assert "aten.sin.default" not in names


def test_a_network_that_writes_into_its_input_gets_a_copy(tmp_path: Path) -> None:
    class WritesInput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(F.relu_(x.view(-1, 4)))
            return y

    module, subject = _small(WritesInput(), torch.randn(2, 4), folder=tmp_path)
    inputs = subject.example_inputs(5)
    kept = inputs[0].clone()
    found = subject.graph(*inputs)
    assert torch.equal(inputs[0], kept)
    assert torch.equal(found, module(kept))


def test_a_product_that_shares_its_parameter_is_left_alone(tmp_path: Path) -> None:
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.table(tokens).mean(1) @ self.table.weight.t() + (
                self.table(tokens).sum(1) @ self.table.weight.t()
            )

    module, subject = _small(Shares(), torch.randint(0, 6, (2, 3)), folder=tmp_path)
    inputs = subject.example_inputs(5)
    assert torch.equal(module(*inputs), subject.graph(*inputs))
    assert len(list(subject.graph.parameters())) == 1
    assert subject.renames == {}


def test_layers_in_other_dimensions_and_kinds_are_lifted(tmp_path: Path) -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv1d(2, 4, 3, padding="same", dilation=2)
            self.rms = nn.RMSNorm(8)
            self.norm = nn.BatchNorm1d(4, momentum=None)
            self.three = nn.Conv3d(1, 2, (1, 2, 2), groups=1, padding=(0, 1, 1))
            self.norm3 = nn.BatchNorm3d(2, affine=False)
            self.up = nn.ConvTranspose3d(2, 2, 2, stride=2, output_padding=1, groups=2)
            self.drop = nn.Dropout3d(0.2)
            self.rnn = nn.RNN(8, 6, bidirectional=True)
            self.fixed = nn.LSTM(12, 5)

        def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
            x = self.norm(self.rms(self.one(x)))
            cube = self.drop(self.up(self.norm3(self.three(x[:, None, :, :, None]))))
            y, last = self.rnn(x.permute(1, 0, 2))
            start = torch.full((1, x.shape[0], 5), 0.3)
            y, (hidden, cell) = self.fixed(y, (start, start))
            return cube, [y.transpose(0, 1), hidden[0], cell[0], last.transpose(0, 1)]

    module, subject = _small(Kinds(), torch.randn(2, 2, 8), folder=tmp_path)
    inputs = subject.example_inputs(5)
    with torch.no_grad():
        expected, structure = tree_flatten(module(*inputs))
        found, found_structure = tree_flatten(subject.graph(*inputs))
    assert structure == found_structure
    for left, right in zip(expected, found, strict=True):
        assert torch.equal(left, right)
    kinds = {path: type(layer) for path, layer in subject.graph.named_modules()}
    assert {path: kinds[path] for path, _ in module.named_children()} == {
        path: type(layer) for path, layer in module.named_children()
    }
    assert subject.graph.get_submodule("norm").momentum is None
    assert [info.name for info in subject.outputs] == [
        "output_0",
        "output_1_0",
        "output_1_1",
        "output_1_2",
        "output_1_3",
    ]


class _BiasApart(nn.Module):
    """Adds the bias of its layer itself, after an activation, and scales by a parameter that lies beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.fc.scale = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc.scale
        assert isinstance(scale, Tensor)
        return (F.linear(x, self.fc.weight).relu() + self.fc.bias) * scale


def test_a_bias_that_the_graph_adds_itself_is_not_the_layers_too(tmp_path: Path) -> None:
    module, x = _BiasApart().eval(), torch.randn(2, 4)
    subject = lifted((module, (x,)), tmp_path)
    assert torch.equal(subject.graph(x), module(x))
    assert subject.renames == {"fc.bias": "fc_bias", "fc.scale": "fc_scale"}
