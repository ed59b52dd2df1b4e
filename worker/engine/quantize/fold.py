"""The network as it is deployed: no in-place writes, no dropout, BatchNorm inside the layer before it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from worker.engine.measure.compare import outputs_of, relative_difference

_aten = torch.ops.aten
_FUNCTIONAL = {
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.div_.Tensor: _aten.div.Tensor,
    _aten.elu_.default: _aten.elu.default,
    _aten.hardsigmoid_.default: _aten.hardsigmoid.default,
    _aten.hardswish_.default: _aten.hardswish.default,
    _aten.hardtanh_.default: _aten.hardtanh.default,
    _aten.leaky_relu_.default: _aten.leaky_relu.default,
    _aten.mish_.default: _aten.mish.default,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.relu_.default: _aten.relu.default,
    _aten.sigmoid_.default: _aten.sigmoid.default,
    _aten.silu_.default: _aten.silu.default,
    _aten.sub_.Tensor: _aten.sub.Tensor,
    _aten.tanh_.default: _aten.tanh.default,
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Linear


def fold(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """A copy of `graph` (eval mode) with the same outputs up to rounding, checked on `inputs`.

    Weights are folded in double precision. Raises `Failure(UNSUPPORTED_OP)` when an in-place write reaches other
    values through a view, so that it cannot be taken out of place.
    """
    folded = copy.deepcopy(graph)
    _take_out_of_place(folded.graph)
    _remove_dropout(folded)
    ranks = _Ranks(folded)
    with torch.no_grad():
        ranks.run(*(value.clone() for value in inputs))
    for node in list(folded.graph.nodes):
        _fold_norm(folded, node, ranks.of)
    folded.delete_all_unused_submodules()
    folded.graph.lint()
    folded.recompile()
    with torch.no_grad():
        expected = outputs_of(graph(*(value.clone() for value in inputs)))
        found = outputs_of(folded(*(value.clone() for value in inputs)))
    if relative_difference(expected, found) > 1e-3:
        raise Failure(
            Code.UNSUPPORTED_OP,
            "an operator writes in place through a view, which cannot be quantized; "
            "export the network again with that operation out of place",
        )
    return folded


def _take_out_of_place(graph: fx.Graph) -> None:
    """Who read the written value after the write now reads the result of the write."""
    position = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _FUNCTIONAL:
            continue
        written = node.args[0]
        node.target = _FUNCTIONAL[node.target]
        for user in list(written.users):
            if position[user] > position[node]:
                user.replace_input_with(written, node)


def _remove_dropout(network: fx.GraphModule) -> None:
    for node in list(network.graph.nodes):
        if node.op == "call_module" and isinstance(network.get_submodule(node.target), _DROPOUTS):
            node.replace_all_uses_with(node.args[0])
            network.graph.erase_node(node)


class _Ranks(fx.Interpreter):
    """The number of dimensions of every layer's output, by node name."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.of: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_module" and isinstance(value, Tensor):
            self.of[n.name] = value.dim()
        return value


def _fold_norm(network: fx.GraphModule, node: fx.Node, ranks: Mapping[str, int]) -> None:
    """`norm(layer(x))` becomes one layer: `w' = w g`, `b' = (b - mean) g + beta`, `g = gamma / sqrt(var + eps)`."""
    if node.op != "call_module" or not isinstance(norm := network.get_submodule(str(node.target)), _NORMS):
        return
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
        return
    layer = network.get_submodule(str(source.target))
    if not isinstance(layer, _Layer) or norm.running_mean is None or norm.running_var is None:
        return
    if isinstance(layer, nn.Linear) and ranks[source.name] != 2:
        return
    if parameter_uses(network, layer) > 1:
        return
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gain = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    offset = torch.zeros_like(mean) if layer.bias is None else layer.bias.detach().double()
    offset = (offset - mean) * gain
    if norm.bias is not None:
        offset = offset + norm.bias.detach().double()
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # [in, out / groups, ...]: an input channel belongs to one group, whose outputs lie in dimension 1.
        per_input = gain.reshape(layer.groups, -1).repeat_interleave(weight.shape[0] // layer.groups, 0)
        weight = weight * per_input.reshape([*weight.shape[:2]] + [1] * (weight.dim() - 2))
    else:
        weight = weight * gain.reshape([-1] + [1] * (weight.dim() - 1))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    layer.bias = nn.Parameter(offset.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    node.replace_all_uses_with(source)
    network.graph.erase_node(node)


def parameter_uses(network: fx.GraphModule, layer: nn.Module) -> int:
    """How many nodes of the graph use a parameter of `layer`: its own calls, and layers it is tied to."""
    own = {id(parameter) for parameter in layer.parameters(recurse=False)}
    uses = 0
    for node in network.graph.nodes:
        if node.op == "call_module":
            called = network.get_submodule(node.target)
            uses += any(id(parameter) in own for parameter in called.parameters())
        elif node.op == "get_attr":
            path, _, leaf = node.target.rpartition(".")
            uses += id(getattr(network.get_submodule(path), leaf)) in own
    return uses
