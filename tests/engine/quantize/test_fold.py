"""Folding is exact: checked in double precision, where rounding cannot hide a mistake."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from tests.engine.subjects import subject_of
from tests.networks import randomised
from worker.engine.measure.compare import outputs_of, relative_difference
from worker.engine.quantize.fold import fold

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded_in_double(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[fx.GraphModule, float]:
    graph = graph.double()
    inputs = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    folded = fold(graph, inputs)
    with torch.no_grad():
        expected = outputs_of(graph(*(value.clone() for value in inputs)))
        return folded, relative_difference(expected, outputs_of(folded(*inputs)))


def norms_in(graph: nn.Module) -> int:
    return sum(isinstance(module, _NORMS) for module in graph.modules())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "unet", "gru", "densenet"])
def test_a_folded_network_computes_the_same(name: str) -> None:
    subject = subject_of(name)
    before = norms_in(subject.graph)
    folded, difference = folded_in_double(subject.graph, subject.example_inputs(3))
    assert difference < 1e-12
    assert norms_in(folded) < before


def test_a_norm_before_its_convolution_stays() -> None:
    subject = subject_of("densenet")
    folded, _ = folded_in_double(subject.graph, subject.example_inputs())
    assert norms_in(folded) == 8


def test_nothing_writes_in_place_afterwards() -> None:
    subject = subject_of("resnet18")
    folded = fold(subject.graph, subject.example_inputs())
    targets = [node.target for node in folded.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert any(node.target is torch.ops.aten.relu_.default for node in subject.graph.graph.nodes)
    assert not any(target._schema.is_mutable for target in targets)


class _Each(nn.Module):
    """Every layer that a norm can follow, one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False)
        self.first_norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, groups=2)
        self.second_norm = nn.BatchNorm2d(4, affine=False)
        self.third = nn.Linear(4, 5)
        self.third_norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second_norm(self.second(self.first_norm(self.first(x))))
        return self.third_norm(self.third(x.mean((2, 3))))


def test_grouped_transposed_and_linear_layers_fold() -> None:
    folded, difference = folded_in_double(fx.symbolic_trace(randomised(_Each())), (torch.randn(3, 4, 5, 5),))
    assert difference < 1e-12
    assert norms_in(folded) == 0


class _Twice(nn.Module):
    """One convolution under two norms, and a linear layer whose norm is over the other dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv1d(4, 4, 1)
        self.one, self.two = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.over_positions = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.over_positions(self.linear(self.one(self.shared(x)) + self.two(self.shared(x))))


def test_what_cannot_fold_is_left_as_it_is() -> None:
    folded, difference = folded_in_double(fx.symbolic_trace(randomised(_Twice())), (torch.randn(3, 4, 4),))
    assert difference < 1e-12
    assert norms_in(folded) == 3


def test_a_write_through_a_view_is_refused() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    doubled = graph.call_function(torch.ops.aten.mul.Tensor, (x, 2))
    part = graph.call_function(torch.ops.aten.select.int, (doubled, 1, 0))
    graph.call_function(torch.ops.aten.relu_.default, (part,))
    graph.output(doubled)
    with pytest.raises(Failure) as caught:
        fold(fx.GraphModule(nn.Module(), graph), (-torch.ones(4, 4),))
    assert caught.value.code == Code.UNSUPPORTED_OP
    assert "in place through a view" in caught.value.message
