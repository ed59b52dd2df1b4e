"""Biases that take back what rounding shifts on average."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.engine.graph.integer import Activation, round_trip
from worker.engine.quantize.grids import put_on_grid, weight_and_bias
from worker.engine.quantize.observe import Inputs


def correct_biases(
    graph: fx.GraphModule,
    activations: Mapping[str, Activation],
    scales: Mapping[str, Tensor],
    largest: int,
    batches: Iterable[Inputs],
) -> dict[str, Tensor]:
    """Take its shift from the bias of every 8-bit layer that has one, in place; the new biases come back by layer name,
    on the CPU. `graph` has its float weights."""
    corrected = {}
    for name, shift in output_shifts(graph, activations, scales, largest, batches).items():
        _, bias = weight_and_bias(graph, name)
        if bias is not None:
            with torch.no_grad():
                bias -= shift.to(bias)
            corrected[name] = bias.detach().cpu().clone()
    return corrected


def output_shifts(
    graph: fx.GraphModule,
    activations: Mapping[str, Activation],
    scales: Mapping[str, Tensor],
    largest: int,
    batches: Iterable[Inputs],
) -> dict[str, Tensor]:
    """By how much rounding its input and its weights raises each output channel of a layer, on average over samples,
    positions and calls: `E[q(W) q(x)] - E[W x]`, by layer name, in double precision.

    Nagel et al., 2019, section 4.2, with the expectation measured on samples, not derived from BatchNorm. Every layer
    reads the values of the float network, so that one pass measures all.
    """
    walker = _Shifts(graph, activations, scales, largest)
    with torch.no_grad():
        for inputs in batches:
            walker.run(*inputs)
    return {name: total / walker.counts[name] for name, total in walker.sums.items()}


class _Shifts(fx.Interpreter):
    def __init__(
        self, graph: fx.GraphModule, activations: Mapping[str, Activation], scales: Mapping[str, Tensor], largest: int
    ) -> None:
        super().__init__(graph)
        rounded = copy.deepcopy(graph)
        put_on_grid(rounded, scales, largest)
        self._activations = activations
        self._rounded = {name: rounded.get_submodule(name) for name in scales}
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module" and n.target in self._rounded:
            (source,) = n.args
            assert isinstance(source, fx.Node)
            activation = self._activations[source.name]
            layer = self._rounded[n.target]
            shift = layer(round_trip(self.env[source], activation.scale, activation.zero_point)) - value
            channels = shift.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1).flatten(0, -2).double()
            self.sums[n.target] = self.sums.get(n.target, 0) + channels.sum(0)
            self.counts[n.target] = self.counts.get(n.target, 0) + len(channels)
        return value
