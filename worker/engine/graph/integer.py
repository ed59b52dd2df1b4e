"""A network of 8-bit integers as a graph: what `quantize` decides, `measure` runs and `export` writes.

Two operators of our own carry the meaning through `torch.export`, so the ONNX file is written with its
QuantizeLinear and DequantizeLinear in place and never rewritten afterwards. In torch both are plain arithmetic.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from worker.engine.graph.copies import sharing_copy
from worker.engine.graph.dynamic import DynamicLayer, use_dynamic_layers

LARGEST_ACTIVATION = 255
LARGEST_WEIGHT = 127
LARGEST_REDUCED = 64
"""Two products of it with unsigned 8-bit integers sum up to less than 2**15: x86 processors without VNNI clip there."""


@dataclass(frozen=True)
class Activation:
    """One value as unsigned 8-bit integers: `real = (integer - zero_point) * scale`.

    `users` are the graph nodes that read the rounded value; the others read the value as it was.
    """

    scale: float
    zero_point: int
    users: tuple[str, ...]


@dataclass(frozen=True)
class Quantization:
    """Which values and weights of a folded graph are 8-bit, and how.

    `activations` by node name. `weight_scales` by layer name: one positive float an output channel, symmetric.
    `kept_float` says of each layer that stays float why. `sqnr_db` of the output of each 8-bit layer, upstream noise
    included. The integers themselves are the graph's weights divided by their scale. `dynamic_scales` alike, by
    parameter name, of the layers whose inputs are ranged at run time (`graph/dynamic.py`).
    """

    activations: Mapping[str, Activation]
    weight_scales: Mapping[str, Tensor]
    kept_float: Mapping[str, str]
    sqnr_db: Mapping[str, float]
    dynamic_scales: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> set[str]:
        """The layers of 8-bit weights."""
        return {*self.weight_scales, *(name.rpartition(".")[0] for name in self.dynamic_scales)}


def round_trip(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """To unsigned 8-bit integers and back, ties to even: ONNX QuantizeLinear, then DequantizeLinear."""
    return (torch.clamp(torch.round(x / scale) + zero_point, 0, LARGEST_ACTIVATION) - zero_point) * scale


def dequantize(integers: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Integers to floats with one scale for each index of `axis` and zero point 0: ONNX DequantizeLinear."""
    shape = [1] * integers.dim()
    shape[axis] = -1
    return integers.to(torch.float32) * scale.reshape(shape)


_LIBRARY: Any = torch.library.Library("modelpress", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("round_trip(Tensor x, float scale, int zero_point) -> Tensor")
_LIBRARY.define("dequantize(Tensor integers, Tensor scale, int axis) -> Tensor")
_LIBRARY.impl("round_trip", round_trip, "CompositeExplicitAutograd")
_LIBRARY.impl("dequantize", dequantize, "CompositeExplicitAutograd")
ROUND_TRIP = torch.ops.modelpress.round_trip.default
DEQUANTIZE = torch.ops.modelpress.dequantize.default

_CONVOLUTIONS: dict[type[nn.Module], tuple[Callable[..., Any], Callable[..., Any]]] = {
    nn.Conv1d: (torch.ops.aten.conv1d.default, torch.ops.aten.conv1d.padding),
    nn.Conv2d: (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding),
    nn.Conv3d: (torch.ops.aten.conv3d.default, torch.ops.aten.conv3d.padding),
}
INTEGER_LAYERS: tuple[type[nn.Module], ...] = (*_CONVOLUTIONS, nn.Linear)
"""The layers that can run on integers."""


def weight_integers(weight: Tensor, scale: Tensor, largest: int = LARGEST_WEIGHT) -> Tensor:
    """`weight` (output channels first) on the grid of `scale` (one an output channel), as int8 up to `largest`."""
    column = scale.to(weight.device).reshape([-1] + [1] * (weight.dim() - 1))
    return torch.round(weight.detach() / column).clamp(-largest, largest).to(torch.int8)


def integer_network(graph: fx.GraphModule, quantization: Quantization) -> fx.GraphModule:
    """A copy of the folded `graph` that computes what the int8 file computes, up to float rounding.

    Weights are int8 buffers under their old names, biases int32 ones with scale input scale * weight scale, so that
    a runtime can add them to its int32 accumulators. The result of each 8-bit layer carries its name in
    `node.meta["int8_layer"]`.
    """
    network = copy.deepcopy(graph)
    rounded: dict[tuple[str, str], fx.Node] = {}
    nodes = {node.name: node for node in network.graph.nodes}
    for name, activation in quantization.activations.items():
        value = nodes[name]
        with network.graph.inserting_after(value):
            node = network.graph.call_function(ROUND_TRIP, (value, activation.scale, activation.zero_point))
        for user in activation.users:
            nodes[user].replace_input_with(value, node)
            rounded[user, name] = node
    for name, scale in quantization.weight_scales.items():
        layer = network.get_submodule(name)
        calls = [node for node in network.graph.nodes if node.op == "call_module" and node.target == name]
        store = _Integers(layer, scale)
        _replace_module(network, name, store)
        for index, call in enumerate(calls):
            (source,) = call.args
            assert isinstance(source, fx.Node)
            input_scale = source.args[1]
            assert isinstance(input_scale, float)
            store.add_bias(index, layer.bias, input_scale)
            _call_on_integers(network.graph, call, layer, index)
    use_dynamic_layers(network, quantization.dynamic_scales)
    network.graph.lint()
    network.recompile()
    return network


def in_plain_aten(network: fx.GraphModule) -> fx.GraphModule:
    """A copy of an integer network with our operators as the arithmetic they stand for: `torch.export` traces
    through it, and the file loads in a torch that has never heard of us."""
    plain = sharing_copy(network)
    arithmetic = {ROUND_TRIP: round_trip, DEQUANTIZE: dequantize}
    for node in plain.graph.nodes:
        if node.op == "call_function":
            node.target = arithmetic.get(node.target, node.target)
    for module in plain.modules():
        if isinstance(module, DynamicLayer):
            module.plain = True
    plain.recompile()
    return plain


class _Integers(nn.Module):
    """What is left of a layer: its weight (inputs first for a linear layer), a bias for each call, their scales."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Module, scale: Tensor) -> None:
        super().__init__()
        assert isinstance(layer.weight, Tensor)
        integers = weight_integers(layer.weight, scale)
        self.register_buffer("weight", integers.t().contiguous() if isinstance(layer, nn.Linear) else integers)
        self.register_buffer("weight_scale", scale.to(integers.device).clone())
        for name, child in layer.named_children():
            self.add_module(name, child)

    def add_bias(self, index: int, bias: object, input_scale: float) -> None:
        if not isinstance(bias, Tensor):
            return
        scale = (self.weight_scale.double() * input_scale).float()
        integers = torch.round(bias.detach().double() / scale.double()).clamp(-(2**31), 2**31 - 1).to(torch.int32)
        suffix = f"_{index}" if index else ""
        self.register_buffer(f"bias{suffix}", integers)
        self.register_buffer(f"bias{suffix}_scale", scale)


def _call_on_integers(graph: fx.Graph, call: fx.Node, layer: nn.Module, index: int) -> None:
    name, suffix = call.target, f"_{index}" if index else ""

    def floats(tensor: str, scale: str, axis: int) -> fx.Node:
        stored = (graph.get_attr(f"{name}.{tensor}"), graph.get_attr(f"{name}.{scale}"))
        return graph.call_function(DEQUANTIZE, (*stored, axis))

    with graph.inserting_before(call):
        weight = floats("weight", "weight_scale", 1 if isinstance(layer, nn.Linear) else 0)
        bias = floats(f"bias{suffix}", f"bias{suffix}_scale", 0) if layer.bias is not None else None
        if isinstance(layer, nn.Linear):
            # Not aten.linear: its transposed weight would stand between DequantizeLinear and MatMul in the ONNX file.
            result = graph.call_function(torch.ops.aten.matmul.default, (call.args[0], weight))
            if bias is not None:
                result = graph.call_function(torch.ops.aten.add.Tensor, (result, bias))
        else:
            assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            default, padding = _CONVOLUTIONS[type(layer)]
            rest = (list(layer.stride), layer.padding, list(layer.dilation), layer.groups)
            target = padding if isinstance(layer.padding, str) else default
            result = graph.call_function(target, (call.args[0], weight, bias, *rest))
    result.meta["int8_layer"] = name
    call.replace_all_uses_with(result)
    graph.erase_node(call)


def _replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)


def activation_grid(minimum: float, maximum: float) -> tuple[float, int]:
    """Scale and zero point of unsigned 8-bit integers that cover the range and hold zero exactly.

    Jacob et al., 2018, section 2.1: `scale = (max - min) / 255`, `zero_point = round(-min / scale)`, after the range
    is widened to hold zero. A value that is always zero gets scale 1.
    """
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    scale = (high - low) / LARGEST_ACTIVATION
    if not math.isfinite(scale) or scale < torch.finfo(torch.float32).tiny:
        return 1.0, 0
    # The grid is stored in single precision; everyone must round with the same number.
    scale = torch.tensor(scale, dtype=torch.float32).item()
    return scale, int(min(LARGEST_ACTIVATION, max(0, round(-low / scale))))


def weight_grid(weight: Tensor, bias: Tensor | None, input_scale: float, largest: int = LARGEST_WEIGHT) -> Tensor:
    """One symmetric scale an output channel (dimension 0): largest magnitude / `largest`; an empty channel gets 1.

    A channel whose bias would not fit 32-bit integers of scale `input_scale * scale` gets a coarser scale.
    """
    scale = weight.detach().double().flatten(1).abs().amax(1) / largest
    if bias is not None:
        scale = torch.maximum(scale, bias.detach().double().abs() / (input_scale * 2.0**30))
    scale = scale.float()
    return torch.where(scale < torch.finfo(torch.float32).tiny, torch.ones_like(scale), scale)
