"""Bias correction on layers by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from models.spec import QuantizeStep
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.graph.integer import Activation, round_trip, weight_grid
from worker.engine.measure.compare import outputs_of
from worker.engine.quantize.bias import correct_biases, output_shifts
from worker.engine.quantize.step import replay, run


def by_hand(layer: nn.Module) -> tuple[fx.GraphModule, dict[str, Activation], dict[str, Tensor]]:
    graph = fx.symbolic_trace(nn.Sequential(layer))
    assert isinstance(layer.weight, Tensor)
    return graph, {"input_1": Activation(0.25, 3, ("_0",))}, {"0": weight_grid(layer.weight, None, 0.25) * 16}


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(5, 4, 3, padding=1), nn.Conv1d(5, 4, 2, bias=False)])
def test_a_shift_is_the_mean_of_what_rounding_adds(layer: nn.Module) -> None:
    graph, activations, scales = by_hand(layer)
    sizes = {"Linear": (6, 5), "Conv1d": (6, 5, 7), "Conv2d": (6, 5, 7, 3)}[type(layer).__name__]
    samples = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    weight = layer.weight
    assert isinstance(weight, Tensor)
    column = scales["0"].reshape([-1] + [1] * (weight.dim() - 1))
    rounded = torch.round(weight.detach() / column) * column
    with torch.no_grad():
        expected = layer(samples)
        found = torch.func.functional_call(layer, {"weight": rounded}, (round_trip(samples, 0.25, 3),))
    axis = 1
    shift = (found - expected).double().mean([other for other in range(expected.dim()) if other != axis])
    measured = output_shifts(graph, activations, scales, 127, [(part,) for part in torch.split(samples, 4)])
    torch.testing.assert_close(measured["0"], shift)
    assert float(shift.abs().max()) > 1e-3


def test_where_only_weights_are_rounded_the_shift_is_their_error_times_the_mean_input() -> None:
    """Nagel et al., 2019, equation 16."""
    layer = nn.Linear(5, 4)
    graph, activations, scales = by_hand(layer)
    samples = torch.randint(-3, 200, (50, 5), generator=torch.Generator().manual_seed(0)) * 0.25
    error = torch.round(layer.weight.detach() / scales["0"][:, None]) * scales["0"][:, None] - layer.weight.detach()
    measured = output_shifts(graph, activations, scales, 127, [(samples,)])
    torch.testing.assert_close(measured["0"], (error @ samples.mean(0)).double(), rtol=1e-4, atol=1e-4)


def test_a_corrected_layer_is_right_on_average_and_one_without_a_bias_is_left_alone() -> None:
    layer = nn.Linear(5, 4)
    graph, activations, scales = by_hand(layer)
    samples = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    before = graph.get_parameter("0.bias").detach().clone()
    shift = output_shifts(graph, activations, scales, 127, [(samples,)])["0"]
    corrected = correct_biases(graph, activations, scales, 127, [(samples,)])
    torch.testing.assert_close(corrected["0"], before - shift.float())
    assert torch.equal(graph.get_parameter("0.bias"), corrected["0"])
    assert float(output_shifts(graph, activations, scales, 127, [(samples,)])["0"].abs().max()) > 0
    bare, activations, scales = by_hand(nn.Linear(5, 4, bias=False))
    assert correct_biases(bare, activations, scales, 127, [(samples,)]) == {}


def test_a_corrected_network_is_replayed_to_the_same_bits(tmp_path: Path) -> None:
    subject, again = subject_of("resnet18"), subject_of("resnet18")
    step = QuantizeStep(step="quantize", calibration_samples=32, bias_correction=True, weight_ranges="mse")
    details = run(subject, step, run_in(tmp_path, step, data=dataset_for(subject, tmp_path)))
    assert details["biases_corrected"] == details["int8_layers"] == 16
    replay(again, subject.records[-1])
    inputs = subject.example_inputs(4)
    with torch.no_grad():
        pairs = zip(outputs_of(subject.network()(*inputs)), outputs_of(again.network()(*inputs)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
