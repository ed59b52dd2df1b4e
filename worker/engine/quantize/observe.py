"""What calibration sees: the range of each value, and how much noise 8 bits add to each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import torch
from torch import Tensor, fx

from models.errors import Code, Failure
from worker.engine.measure.compare import decibels, outputs_of

Inputs = tuple[Tensor, ...]
Range = tuple[float, float]


def observe_ranges(graph: fx.GraphModule, values: Set[str], batches: Iterable[Inputs]) -> dict[str, Range]:
    """Smallest and largest element of each named value over all batches.

    Raises `Failure(DATASET_BAD)` when a value is not finite on some batch, or there is no batch.
    """
    ranges: dict[str, Range] = {}

    def see(node: fx.Node, value: Any) -> None:
        if node.name in values:
            low, high = (float(bound) for bound in torch.aminmax(value))
            if not (-torch.inf < low and high < torch.inf):
                raise Failure(
                    Code.DATASET_BAD, "the network's values are not finite on a calibration sample", where=node.name
                )
            before = ranges.get(node.name, (low, high))
            ranges[node.name] = (min(low, before[0]), max(high, before[1]))

    walker = Walker(graph, see)
    seen = False
    with torch.no_grad():
        for inputs in batches:
            walker.run(*inputs)
            seen = True
    if not seen:
        raise Failure(Code.DATASET_BAD, "quantization needs at least one calibration sample; send a data set")
    return ranges


def layer_sqnr_db(graph: fx.GraphModule, network: fx.GraphModule, inputs: Inputs) -> dict[str, float]:
    """Signal to noise ratio in dB of each 8-bit layer's output: the float `graph` against the integer `network`.

    Noise from the layers before is included. A layer called several times is summed over its calls.
    """
    clean: dict[str, list[Tensor]] = {}
    powers: dict[str, list[float]] = {}
    layers = {node.meta["int8_layer"] for node in network.graph.nodes if "int8_layer" in node.meta}

    def keep(node: fx.Node, value: Any) -> None:
        if node.op == "call_module" and node.target in layers:
            clean.setdefault(str(node.target), []).append(outputs_of(value)[0])

    def compare(node: fx.Node, value: Any) -> None:
        if (name := node.meta.get("int8_layer")) is not None:
            expected, value = clean[name].pop(0).double(), outputs_of(value)[0]
            signal, noise = powers.setdefault(name, [0.0, 0.0])
            powers[name] = [
                signal + expected.square().sum().item(),
                noise + (expected - value.double()).square().sum().item(),
            ]

    with torch.no_grad():
        Walker(graph, keep).run(*inputs)
        Walker(network, compare).run(*inputs)
    return {name: round(decibels(signal, noise), 2) for name, (signal, noise) in powers.items()}


class Walker(fx.Interpreter):
    """Runs a graph and shows every value to `see`."""

    def __init__(self, graph: fx.GraphModule, see: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(graph)
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self._see(n, value)
        return value


def ranges_as_tensor(ranges: Mapping[str, Range]) -> Tensor:
    """One row [smallest, largest] for each name, in the order of the mapping."""
    return torch.tensor(list(ranges.values()), dtype=torch.float64).reshape(-1, 2)
