"""The registry of layers: one row a kind of `nn` module that lifting may create."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx, nn

from worker.engine.graph.labels import Axes, Refusal, Value
from worker.engine.graph.ops.call import Call
from worker.engine.graph.ops.convolve import convolve, transposed_cost
from worker.engine.graph.ops.matmul import linear_map
from worker.engine.graph.ops.normalise import fix_positions, follow_channel, follow_last, normalise_groups
from worker.engine.graph.ops.sizing import Remaining, Sizing


@dataclass(frozen=True)
class ModuleRules:
    """`channels` propagates labels; `resize` mends attributes once the tensors are cut; `cost` counts
    multiply-accumulates of one call (without one: zero)."""

    channels: Callable[[Call, Any], Value]
    resize: Callable[[Any, fx.Node, Remaining], None] | None = None
    cost: Callable[[fx.Node, Any, Sizing], int] | None = None


def rules_for(module: nn.Module) -> ModuleRules | None:
    return next((MODULES[kind] for kind in type(module).__mro__ if kind in MODULES), None)


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0] if node.args else node.kwargs["input"]
    if not isinstance(source, fx.Node):
        raise TypeError(f"{node.name} has no input")
    return source


def _needed(axes: Axes | None) -> Axes:
    if axes is None:
        raise Refusal("has no weight")
    return axes


def _convolution(call: Call, module: Any) -> Axes:
    weight, bias = _needed(call.parameter("weight")), call.parameter("bias")
    sizes = tuple(module.weight.shape)
    return convolve(call, weight, bias, module.groups, sizes, module.transposed)


def _resize_convolution(module: Any, node: fx.Node, remaining: Remaining) -> None:
    channels = remaining.axes(_source(node))[1 - module.weight.dim()]
    if module.groups > 1 and channels is not None and channels.size == module.groups:
        module.groups = remaining.count(channels)
    first, second = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.in_channels, module.out_channels = second * module.groups, first


def _convolution_cost(node: fx.Node, module: Any, sizing: Sizing) -> int:
    weight = sizing.parameter(f"{node.target}.weight")
    if module.transposed:
        return transposed_cost(_source(node), weight, sizing)
    return math.prod(sizing.sizes(node)) * math.prod(weight[1:])


def _linear(call: Call, _: nn.Linear) -> Axes:
    return linear_map(call, call.operand("input"), _needed(call.parameter("weight")), call.parameter("bias"))


def _resize_linear(module: nn.Linear, node: fx.Node, remaining: Remaining) -> None:
    module.out_features, module.in_features = module.weight.shape


def _linear_cost(node: fx.Node, module: nn.Linear, sizing: Sizing) -> int:
    return math.prod(sizing.sizes(node)) * sizing.parameter(f"{node.target}.weight")[1]


def _per_channel(call: Call, _: nn.Module) -> Axes:
    axes = call.operand("input")
    fix_positions(call, axes)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        if (values := call.parameter(leaf)) is not None:
            follow_channel(call, axes, values)
    return axes


def _resize_per_channel(module: Any, node: fx.Node, remaining: Remaining) -> None:
    module.num_features = remaining.sizes(_source(node))[1]


def _prelu(call: Call, module: nn.PReLU) -> Axes:
    axes, weight = call.operand("input"), _needed(call.parameter("weight"))
    if module.num_parameters > 1:
        follow_channel(call, axes, weight)
    return axes


def _resize_prelu(module: nn.PReLU, node: fx.Node, remaining: Remaining) -> None:
    module.num_parameters = module.weight.numel()


def _last_dims(call: Call, _: nn.Module) -> Axes:
    axes = call.operand("input")
    for leaf in ("weight", "bias"):
        if (values := call.parameter(leaf)) is not None:
            follow_last(call, axes, values)
    return axes


def _resize_last_dims(module: Any, node: fx.Node, remaining: Remaining) -> None:
    module.normalized_shape = remaining.sizes(_source(node))[-len(module.normalized_shape) :]


def _group_norm(call: Call, module: nn.GroupNorm) -> Axes:
    axes = call.operand("input")
    normalise_groups(call, axes, module.num_groups, module.num_channels)
    for leaf in ("weight", "bias"):
        if (values := call.parameter(leaf)) is not None:
            follow_channel(call, axes, values)
    return axes


def _resize_group_norm(module: nn.GroupNorm, node: fx.Node, remaining: Remaining) -> None:
    channels = remaining.sizes(_source(node))[1]
    if module.num_groups == module.num_channels:
        module.num_groups = channels
    module.num_channels = channels


def _embedding(call: Call, _: nn.Embedding) -> Axes:
    weight = _needed(call.parameter("weight"))
    call.freeze(weight[0], "is a vocabulary")
    return [*call.operand("input"), weight[1]]


def _resize_embedding(module: nn.Embedding, node: fx.Node, remaining: Remaining) -> None:
    module.embedding_dim = module.weight.shape[1]


def _unchanged(call: Call, _: nn.Module) -> Axes:
    return call.operand("input")


def _recurrent(call: Call, module: nn.RNNBase) -> Value:
    """Hidden labels are tiled over the gates; the state has labels of its own where it is projected. An `nn` module has
    one hidden size, so all its layers and directions are tied."""
    axes, features = call.operand("input"), call.operand("input")[-1]
    hidden = call.labels.fresh(module.hidden_size)
    state = call.labels.fresh(module.proj_size) if module.proj_size else hidden
    directions = 2 if module.bidirectional else 1
    gates = _GATES[type(module)]
    for suffix in _recurrent_suffixes(module):
        call.tie(_needed(call.parameter(f"weight_ih{suffix}"))[1], features)
        call.tie(_needed(call.parameter(f"weight_hh{suffix}"))[1], state)
        for leaf in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if (values := call.parameter(leaf + suffix)) is not None:
                call.tie(values[0], np.tile(hidden, gates))
        if (projection := call.parameter(f"weight_hr{suffix}")) is not None:
            call.tie(projection[0], state)
            call.tie(projection[1], hidden)
        if suffix.endswith("_reverse") or not module.bidirectional:
            features = np.tile(state, directions)
    given = call.arguments.get("hx")
    starts = call.operands("hx") if isinstance(given, (tuple, list)) else [call.optional("hx")]
    for start, own in zip(starts, (state, hidden), strict=False):
        if start is not None:
            call.tie(start[-1], own)
    result: Axes = [*axes[:-1], np.tile(state, directions)]
    final, cell = ([*[None] * (len(axes) - 1), own] for own in (state, hidden))
    return (result, (final, cell) if isinstance(module, nn.LSTM) else final)


def _recurrent_suffixes(module: nn.RNNBase) -> list[str]:
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"_l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]


def _resize_recurrent(module: Any, node: fx.Node, remaining: Remaining) -> None:
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = module.weight_hh_l0.shape[0] // _GATES[type(module)]
    if module.proj_size:
        module.proj_size = module.weight_hh_l0.shape[1]
    module._init_flat_weights()


def _recurrent_cost(node: fx.Node, module: nn.RNNBase, sizing: Sizing) -> int:
    steps = math.prod(sizing.sizes(_source(node))[:-1])
    leaves = ("weight_ih", "weight_hh", *(("weight_hr",) if module.proj_size else ()))
    matrices = (f"{node.target}.{leaf}{suffix}" for suffix in _recurrent_suffixes(module) for leaf in leaves)
    return steps * sum(math.prod(sizing.parameter(name)) for name in matrices)


_GATES: dict[type[nn.RNNBase], int] = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
_CONVOLUTION = ModuleRules(_convolution, _resize_convolution, _convolution_cost)
_PER_CHANNEL = ModuleRules(_per_channel, _resize_per_channel)
_LAST_DIMS = ModuleRules(_last_dims, _resize_last_dims)
_RECURRENT = ModuleRules(_recurrent, _resize_recurrent, _recurrent_cost)
_UNCHANGED = ModuleRules(_unchanged)

MODULES: dict[type[nn.Module], ModuleRules] = {
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _CONVOLUTION,
    nn.ConvTranspose2d: _CONVOLUTION,
    nn.ConvTranspose3d: _CONVOLUTION,
    nn.Linear: ModuleRules(_linear, _resize_linear, _linear_cost),
    nn.BatchNorm1d: _PER_CHANNEL,
    nn.BatchNorm2d: _PER_CHANNEL,
    nn.BatchNorm3d: _PER_CHANNEL,
    nn.InstanceNorm1d: _PER_CHANNEL,
    nn.InstanceNorm2d: _PER_CHANNEL,
    nn.InstanceNorm3d: _PER_CHANNEL,
    nn.LayerNorm: _LAST_DIMS,
    nn.RMSNorm: _LAST_DIMS,
    nn.GroupNorm: ModuleRules(_group_norm, _resize_group_norm),
    nn.PReLU: ModuleRules(_prelu, _resize_prelu),
    nn.Embedding: ModuleRules(_embedding, _resize_embedding),
    nn.LSTM: _RECURRENT,
    nn.GRU: _RECURRENT,
    nn.RNN: _RECURRENT,
    nn.Dropout: _UNCHANGED,
    nn.Dropout1d: _UNCHANGED,
    nn.Dropout2d: _UNCHANGED,
    nn.Dropout3d: _UNCHANGED,
    nn.AlphaDropout: _UNCHANGED,
    nn.FeatureAlphaDropout: _UNCHANGED,
}
