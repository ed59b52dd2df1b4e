"""A folded graph that computes in floating point what its integers will, and learns: fake quantization.

Jacob et al., 2018, section 3: forward, values and weights are rounded to their grids; backward, rounding passes
gradients on as they are and clipping stops them (the straight-through estimator, Bengio et al., 2013). The numbers are
those of `graph/integer.py`, so the integer network made afterwards computes the same, up to float rounding.

With learnt scales gradients also reach these (LSQ: Esser et al., 2020); zero points stay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from worker.engine.graph.integer import LARGEST_ACTIVATION, Activation, weight_grid
from worker.engine.quantize.observe import Range
from worker.engine.quantize.placement import Placement

ROUNDERS = "rounders"
"""The submodule of a fake-quantized graph that holds a `Rounder` for each value that is rounded."""
_SMALLEST = 1e-8


class _Round(torch.autograd.Function):
    """`(clamp(round(x / scale) + zero_point, low, high) - zero_point) * scale`; `scale` broadcasts against `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: int, low: int, high: int, damping: float) -> Tensor:
        steps = x / scale
        integers = torch.round(steps) + zero_point
        clipped = torch.clamp(integers, low, high)
        ctx.save_for_backward(steps, scale)
        ctx.zero_point, ctx.low, ctx.high, ctx.damping = zero_point, low, high, damping
        return (clipped - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Esser et al., 2020, equation 3; the gradient of the scale is damped by `1 / sqrt(elements * levels)`."""
        (gradient,) = gradients
        steps, scale = ctx.saved_tensors
        bottom, top = ctx.low - ctx.zero_point, ctx.high - ctx.zero_point
        rounded = torch.round(steps)
        inside = (rounded >= bottom) & (rounded <= top)
        to_scale = None
        if ctx.needs_input_grad[1]:
            per_step = torch.where(inside, rounded - steps, rounded.clamp(bottom, top))
            whole = (gradient * per_step).sum_to_size(scale.shape)
            to_scale = whole * ctx.damping
        return gradient * inside, to_scale, None, None, None, None


_round: Any = _Round.apply


class Rounder(nn.Module):
    """Rounds a value to unsigned 8-bit integers and back."""

    scale: Tensor

    def __init__(self, scale: float, zero_point: int, *, learns: bool) -> None:
        super().__init__()
        self.zero_point, self.learns = zero_point, learns
        start = torch.tensor(scale, dtype=torch.float32)
        if learns:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start, persistent=True)

    def now(self) -> Tensor:
        return self.scale.clamp_min(_SMALLEST) if self.learns else self.scale

    def range(self) -> Range:
        """The one whose `activation_grid` is this."""
        scale = float(self.now().detach())
        return -self.zero_point * scale, (LARGEST_ACTIVATION - self.zero_point) * scale

    def forward(self, x: Tensor) -> Tensor:
        damping = 1.0 / math.sqrt(x.numel() / max(1, len(x)) * LARGEST_ACTIVATION)
        result: Tensor = _round(x.float(), self.now(), self.zero_point, 0, LARGEST_ACTIVATION, damping)
        return result


class RoundedLayer(nn.Module):
    """A convolution or linear layer on rounded weights and biases. It owns the very parameters of `layer`, under the
    same names; `rounders` are those of the values that its calls read, in their order, `largest` is a weight's largest
    integer."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, layer: nn.Module, rounders: list[Rounder], scale: Tensor, largest: int, *, follows: bool, learns: bool
    ) -> None:
        super().__init__()
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
        self.weight, self.bias = layer.weight, layer.bias
        for name, child in layer.named_children():
            self.add_module(name, child)
        # In lists, which hide them: their parameters have names already.
        self._layer, self._rounders = [layer], list(rounders)
        self.largest, self.follows, self.learns = largest, follows, learns
        if learns:
            self.weight_scale = nn.Parameter(scale.clone())
        elif not follows:
            self.register_buffer("weight_scale", scale.clone())

    @property
    def layer(self) -> nn.Module:
        """What it stands for, with the parameters as they are now."""
        return self._layer[0]

    def scale(self) -> Tensor:
        """One an output channel: that of the largest weight as it is now, a fixed one, or one that is learnt."""
        smallest = min(float(rounder.now().detach()) for rounder in self._rounders)
        if self.follows:
            return weight_grid(self.weight, self.bias, smallest, self.largest)
        assert isinstance(self.weight_scale, Tensor)
        coarsest = weight_grid(torch.zeros_like(self.weight), self.bias, smallest)
        bound = torch.where(coarsest == 1.0, _SMALLEST, coarsest)  # 1 stands for no bound from the bias.
        return torch.maximum(self.weight_scale, bound)

    def forward(self, x: Tensor, call: int) -> Tensor:
        scale = self.scale()
        column = scale.reshape([-1] + [1] * (self.weight.dim() - 1))
        damping = 1.0 / math.sqrt(self.weight[0].numel() * self.largest)
        weight = _round(self.weight, column, 0, -self.largest, self.largest, damping)
        bias = self.bias
        if bias is not None:
            step = (scale.detach().double() * float(self._rounders[call].now().detach())).float()
            integers = torch.round(bias.detach().double() / step.double())
            rounded = integers.clamp(-(2**31), 2**31 - 1).float() * step
            bias = bias + (rounded - bias).detach()
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        assert isinstance(self.layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        result: Tensor = self.layer._conv_forward(x, weight, bias)
        return result


def with_fakes(
    graph: fx.GraphModule,
    placement: Placement,
    activations: Mapping[str, Activation],
    scales: Mapping[str, Tensor],
    largest: int,
    *,
    follows: Mapping[str, bool],
    learn_scales: bool,
) -> fx.GraphModule:
    """A copy of the folded `graph` that computes what its integer network will, with its parameters under their names.

    `follows` says of each layer whether the scale of its weights follows them; all are learnt with `learn_scales`.
    """
    network = copy.deepcopy(graph)
    nodes = {node.name: node for node in network.graph.nodes}
    by_source: dict[str, Rounder] = {}
    network.add_submodule(ROUNDERS, nn.Module())
    reads: dict[tuple[str, str], Rounder] = {}
    for name, activation in activations.items():
        source = placement.sources[name]
        if source not in by_source:
            by_source[source] = Rounder(activation.scale, activation.zero_point, learns=learn_scales)
            network.add_submodule(f"{ROUNDERS}.{source}", by_source[source])
        value = nodes[name]
        with network.graph.inserting_after(value):
            rounded = network.graph.call_module(f"{ROUNDERS}.{source}", (value,))
        for user in activation.users:
            nodes[user].replace_input_with(value, rounded)
            reads[user, name] = by_source[source]
    for name in placement.layers:
        calls = [node for node in network.graph.nodes if node.op == "call_module" and node.target == name]
        rounders = [reads[call.name, _value_of(call)] for call in calls]
        layer = RoundedLayer(
            network.get_submodule(name),
            rounders,
            scales[name],
            largest,
            follows=follows[name] and not learn_scales,
            learns=learn_scales,
        )
        _replace(network, name, layer)
        for index, call in enumerate(calls):
            call.args = (*call.args, index)
    network.graph.lint()
    network.recompile()
    return network


def without_fakes(network: fx.GraphModule) -> tuple[fx.GraphModule, dict[str, Range], dict[str, Tensor]]:
    """The folded graph that `network` was made of, with its parameters as they are now, in place; the range of each
    source and the scales of each layer come with it."""
    rounders = network.get_submodule(ROUNDERS)
    ranges = {name: rounder.range() for name, rounder in rounders.named_children() if isinstance(rounder, Rounder)}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, RoundedLayer)}
    scales = {name: layer.scale().detach().cpu() for name, layer in layers.items()}
    for node in list(network.graph.nodes):
        if node.op != "call_module":
            continue
        if node.target in layers:
            node.args = node.args[:1]
        elif str(node.target).startswith(f"{ROUNDERS}."):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)
    for name, layer in layers.items():
        _replace(network, name, layer.layer)
    network.delete_submodule(ROUNDERS)
    network.graph.lint()
    network.recompile()
    return network, ranges, scales


def _value_of(call: fx.Node) -> str:
    """The value whose rounded form a call reads."""
    (source,) = call.args
    assert isinstance(source, fx.Node)
    (value,) = source.args
    return str(value)


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(root.get_submodule(parent), leaf, module)
