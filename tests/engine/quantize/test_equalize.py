"""Cross-layer equalization: nothing changes in floating point, everything does in 8 bits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from models.spec import QuantizeStep
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from worker.engine.measure.compare import outputs_of, relative_difference, sqnr_db
from worker.engine.quantize.equalize import equalize
from worker.engine.quantize.fold import fold
from worker.engine.quantize.step import replay, run
from worker.engine.subject import Subject


class Uneven(nn.Module):
    """Convolutions, one of them depthwise and one grouped, and linear layers; `spread` makes channels unlike that the
    next layer takes back."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 8, 3, groups=2)
        self.hidden, self.head = nn.Linear(8, 24), nn.Linear(24, 5)
        factors = torch.logspace(-spread, spread, 16)
        with torch.no_grad():
            for writer, reader in ((self.first, self.depthwise), (self.depthwise, self.point)):
                factors = factors.flip(0)
                writer.weight.mul_(factors[:, None, None, None])
                assert writer.bias is not None
                writer.bias.mul_(factors)
                reader.weight.div_(factors[:, None, None, None] if reader.groups > 1 else factors[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(torch.relu(self.first(x))).relu()
        x = torch.max_pool2d(self.point(x).relu(), 2)
        x = self.grouped(x).mean((2, 3))
        scores: Tensor = self.head(self.hidden(x).relu())
        return scores


def uneven(folder: Path, spread: float) -> Subject:
    torch.manual_seed(0)
    return lifted(Uneven(spread), (torch.randn(2, 3, 12, 12),), folder)


def magnitudes(weight: Tensor, dimension: int) -> Tensor:
    return weight.detach().abs().amax([other for other in range(weight.dim()) if other != dimension])


def test_channels_of_both_layers_become_the_geometric_mean_of_what_they_were() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    graph = fx.symbolic_trace(module)
    for name in ("0", "2"):
        torch.nn.init.normal_(graph.get_parameter(f"{name}.weight"))
    graph.graph.find_nodes(op="call_module", target="1")[0].op = "call_module"
    relu = graph.graph.find_nodes(op="call_module", target="1")[0]
    with graph.graph.inserting_after(relu):
        plain = graph.graph.call_function(torch.ops.aten.relu.default, relu.args)
    relu.replace_all_uses_with(plain)
    graph.graph.erase_node(relu)
    graph.recompile()
    written, read = magnitudes(graph.get_parameter("0.weight"), 0), magnitudes(graph.get_parameter("2.weight"), 1)
    bias = graph.get_parameter("0.bias").detach().clone()
    (pair,) = equalize(graph)
    assert (pair.first, pair.second) == ("0", "2")
    expected = (written * read).sqrt()
    torch.testing.assert_close(magnitudes(graph.get_parameter("0.weight"), 0), expected)
    torch.testing.assert_close(magnitudes(graph.get_parameter("2.weight"), 1), expected)
    torch.testing.assert_close(graph.get_parameter("0.bias").detach(), bias / (written / read).sqrt())


def test_the_pairs_of_a_chain_are_found_and_each_ends_equal(tmp_path: Path) -> None:
    subject = uneven(tmp_path, 3.0)
    graph = fold(subject.graph, subject.example_inputs())
    inputs = subject.example_inputs(4)
    pairs = equalize(graph)
    assert [(pair.first, pair.second) for pair in pairs] == [
        ("first", "depthwise"),
        ("depthwise", "point"),
        ("point", "grouped"),
        ("hidden", "head"),
    ]
    with torch.no_grad():
        assert relative_difference(outputs_of(subject.graph(*inputs)), outputs_of(graph(*inputs))) < 1e-5
    depthwise = magnitudes(graph.get_parameter("depthwise.weight"), 0)
    torch.testing.assert_close(magnitudes(graph.get_parameter("first.weight"), 0), depthwise, rtol=0.01, atol=0)
    torch.testing.assert_close(magnitudes(graph.get_parameter("point.weight"), 1), depthwise, rtol=0.01, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "densenet", "unet", "vit", "tied_language_model"])
def test_no_network_computes_anything_else_afterwards(name: str) -> None:
    subject = subject_of(name)
    graph = fold(subject.graph, subject.example_inputs()).double()
    inputs = tuple(value.double() if value.is_floating_point() else value for value in subject.example_inputs(3))
    before = copy.deepcopy(graph)
    equalize(graph)
    with torch.no_grad():
        assert relative_difference(outputs_of(before(*inputs)), outputs_of(graph(*inputs))) < 1e-12


def test_dead_channels_and_zeros_stay(tmp_path: Path) -> None:
    subject = uneven(tmp_path, 1.0)
    graph = fold(subject.graph, subject.example_inputs())
    weight = graph.get_parameter("first.weight")
    with torch.no_grad():
        weight[2] = 0
        weight[:, 1] = 0
    zero = weight == 0
    equalize(graph)
    after = graph.get_parameter("first.weight")
    assert torch.equal(after == 0, zero)
    assert bool(torch.isfinite(after).all())


def quantized(folder: Path, spread: float, *, equalize: bool) -> tuple[Subject, float]:
    subject = uneven(folder, spread)
    step = QuantizeStep(step="quantize", calibration_samples=64, reduce_range=False, equalize=equalize)
    run(subject, step, run_in(folder, step, data=dataset_for(subject, folder)))
    inputs = subject.example_inputs(32, seed=7)
    with torch.no_grad():
        (expected,), (found,) = outputs_of(subject.original(*inputs)), outputs_of(subject.network()(*inputs))
    same = expected.mean(0)  # What an input does not change says nothing about the channels.
    return subject, sqnr_db((expected - same,), (found - same,))


def test_8_bits_ruin_a_network_of_unlike_channels_and_not_once_they_are_equal(tmp_path: Path) -> None:
    _, even = quantized(tmp_path, 0.0, equalize=False)
    _, ruined = quantized(tmp_path, 4.0, equalize=False)
    subject, fine = quantized(tmp_path, 4.0, equalize=True)
    assert ruined < -10
    assert fine > even > 5
    again = uneven(tmp_path, 4.0)
    replay(again, subject.records[-1])
    inputs = subject.example_inputs(4)
    assert torch.equal(subject.network()(*inputs), again.network()(*inputs))
