"""Scales and zero points, by hand and against the ONNX reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from worker.engine.graph.integer import (
    DEQUANTIZE,
    LARGEST_ACTIVATION,
    LARGEST_REDUCED,
    ROUND_TRIP,
    activation_grid,
    weight_grid,
    weight_integers,
)
from worker.engine.quantize.grids import least_squares_grid


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero_point"),
    [
        (0.0, 2.55, 0.01, 0),
        (-1.02, 1.53, 0.01, 102),
        (-5.1, 0.0, 0.02, 255),
        (-0.5, 2.05, 0.01, 50),
        (1.0, 5.1, 0.02, 0),
        (-5.1, -1.0, 0.02, 255),
    ],
)
def test_an_activation_grid_covers_the_range_and_zero(low: float, high: float, scale: float, zero_point: int) -> None:
    found_scale, found_zero = activation_grid(low, high)
    assert found_scale == pytest.approx(scale, rel=1e-6)
    assert found_zero == zero_point


def test_a_value_that_is_always_zero_has_scale_one() -> None:
    assert activation_grid(0.0, 0.0) == (1.0, 0)
    assert activation_grid(0.0, 1e-43) == (1.0, 0)


def test_a_weight_grid_is_symmetric_with_one_scale_an_output_channel() -> None:
    weight = torch.tensor([[0.5, -1.27], [2.54, 0.01], [0.0, 0.0]])
    scale = weight_grid(weight, None, 1.0)
    torch.testing.assert_close(scale, torch.tensor([0.01, 0.02, 1.0]))
    assert weight_integers(weight, scale).tolist() == [[50, -127], [127, 0], [0, 0]]


def test_two_products_with_weights_of_the_reduced_range_fit_16_bits() -> None:
    """What vpmaddubsw sums before it clips."""
    weight = torch.tensor([[0.5, -1.28], [1.28, 0.01]])
    scale = weight_grid(weight, None, 1.0, LARGEST_REDUCED)
    torch.testing.assert_close(scale, torch.tensor([0.02, 0.02]))
    assert weight_integers(weight, scale / 2, LARGEST_REDUCED).tolist() == [[50, -64], [64, 1]]
    assert 2 * LARGEST_ACTIVATION * LARGEST_REDUCED < 2**15 <= 2 * LARGEST_ACTIVATION * (LARGEST_REDUCED + 1)


def test_weights_on_the_grid_give_the_same_integers_again() -> None:
    weight = torch.randn(32, 100, generator=torch.Generator().manual_seed(0))
    scale = weight_grid(weight, None, 1.0)
    integers = weight_integers(weight, scale)
    assert torch.equal(weight_integers(integers * scale[:, None], scale), integers)


def test_a_bias_too_large_for_32_bits_makes_its_channel_coarser() -> None:
    weight, bias = torch.full((2, 1), 1e-6), torch.tensor([1000.0, 1e-6])
    scale = weight_grid(weight, bias, 0.01)
    assert scale[0].item() == pytest.approx(1000 / (0.01 * 2**30))
    assert scale[1].item() == pytest.approx(1e-6 / 127)
    assert (bias / (scale * 0.01)).abs().max() < 2**31


def test_a_round_trip_is_quantize_linear_then_dequantize_linear() -> None:
    scale, zero_point = 0.25, 3
    ties = torch.arange(-40, 40) * 0.125
    x = torch.cat([ties, torch.randn(500, generator=torch.Generator().manual_seed(1)) * 40])
    names = ("x", "y")
    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in names)
    initializers = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
        helper.make_tensor("zero", TensorProto.UINT8, [], [zero_point]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "round_trip", [value], [result], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (expected,) = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    found = ROUND_TRIP(x, scale, zero_point).numpy()
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 100


def test_integers_become_floats_along_an_axis() -> None:
    integers = torch.tensor([[1, 2], [3, -4]], dtype=torch.int8)
    scale = torch.tensor([0.5, 10.0])
    assert DEQUANTIZE(integers, scale, 0).tolist() == [[0.5, 1.0], [30.0, -40.0]]
    assert DEQUANTIZE(integers, scale, 1).tolist() == [[0.5, 20.0], [1.5, -40.0]]


def test_the_least_squares_scale_of_a_channel_is_the_best_of_all_that_are_tried() -> None:
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) ** 3
    found = least_squares_grid(weight, None, 1.0)
    for row, scale in zip(weight.double(), found, strict=True):

        def error(step: float, row: torch.Tensor = row) -> float:
            return float((row - (row / step).round().clamp(-127, 127) * step).square().sum())

        largest = float(row.abs().max()) / 127
        tried = [error(largest * part / 80) for part in range(40, 81)]
        assert error(float(scale)) == pytest.approx(min(tried), rel=1e-4)
        assert error(float(scale)) <= error(largest) * (1 + 1e-6)


def test_a_bias_too_large_for_a_finer_scale_keeps_it_coarse() -> None:
    weight, bias = torch.tensor([[1.0, 0.3, -0.2]]), torch.tensor([1e6])
    finest = 1e6 / (0.01 * 2**30)
    assert least_squares_grid(weight, bias, 0.01).item() >= finest * (1 - 1e-6)
