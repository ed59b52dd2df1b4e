"""From ranges to scales, and the weights of a graph onto them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from models.spec import Int8Choices
from worker.engine.graph.integer import (
    LARGEST_REDUCED,
    LARGEST_WEIGHT,
    Activation,
    activation_grid,
    weight_grid,
    weight_integers,
)
from worker.engine.quantize.observe import Range
from worker.engine.quantize.placement import Placement

_SHRINK = [part / 80 for part in range(80, 39, -1)]
"""Parts of an output channel's largest weight that the search for the smallest error tries."""


def activations_of(placement: Placement, ranges: Mapping[str, Range]) -> dict[str, Activation]:
    """`ranges` are those of the sources of `placement`."""
    found = {}
    for name, users in placement.users.items():
        scale, zero_point = activation_grid(*ranges[placement.sources[name]])
        found[name] = Activation(scale, zero_point, users)
    return found


def largest_weight(step: Int8Choices) -> int:
    """The largest integer that a weight becomes."""
    return LARGEST_REDUCED if step.reduce_range else LARGEST_WEIGHT


def scales_of(
    graph: fx.GraphModule, placement: Placement, activations: Mapping[str, Activation], step: Int8Choices
) -> dict[str, Tensor]:
    """One scale an output channel of each 8-bit layer, by layer name, on the CPU."""
    scales = {}
    for name in placement.layers:
        weight, bias = weight_and_bias(graph, name)
        smallest = min(activations[value].scale for value in values_read(graph, name))
        find = weight_grid if step.weight_ranges_of(name) == "minmax" else least_squares_grid
        scales[name] = find(weight, bias, smallest, largest_weight(step)).cpu()
    return scales


def put_on_grid(graph: fx.GraphModule, scales: Mapping[str, Tensor], largest: int) -> None:
    """Every weight becomes its integer, of magnitude `largest` at most, times its scale, in place."""
    for name, scale in scales.items():
        weight, _ = weight_and_bias(graph, name)
        column = scale.to(weight.device).reshape([-1] + [1] * (weight.dim() - 1))
        with torch.no_grad():
            weight.copy_(weight_integers(weight, scale, largest) * column)


def least_squares_grid(
    weight: Tensor, bias: Tensor | None, input_scale: float, largest: int = LARGEST_WEIGHT
) -> Tensor:
    """As `weight_grid`, but of each output channel the scale with the smallest squared error of rounding and clipping,
    of a grid of candidates (Nagel et al., 2021, section 3.1)."""
    widest = weight_grid(weight, bias, input_scale, largest)
    finest = weight_grid(torch.zeros_like(weight), bias, input_scale)
    floor = torch.where(finest == 1.0, 0.0, finest)  # 1 stands for no bound from the bias.
    rows = weight.detach().flatten(1).double()
    best = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
    chosen = widest
    for part in _SHRINK:
        scale = torch.maximum(widest * part, floor)
        column = scale.double()[:, None]
        rounded = torch.round(rows / column).clamp(-largest, largest) * column
        error = (rows - rounded).square().sum(1)
        better = error < best
        best, chosen = torch.where(better, error, best), torch.where(better, scale, chosen)
    return chosen


def weight_and_bias(graph: fx.GraphModule, name: str) -> tuple[nn.Parameter, Tensor | None]:
    layer = graph.get_submodule(name)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert bias is None or isinstance(bias, Tensor)
    return weight, bias


def values_read(graph: fx.GraphModule, name: str) -> list[str]:
    """The value that each call of a layer reads, by node name."""
    calls = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == name]
    return [str(call.args[0]) for call in calls]
