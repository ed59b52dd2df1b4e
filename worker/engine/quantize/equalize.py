"""Channels of unlike size brought to one size, without changing what the network computes.

Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1 (and Meller
et al., 2019): where a ReLU lies between two layers, `relu(s x) = s relu(x)`, so channel i of the first may be divided
by s_i and the weights of the second that read it multiplied. With `s_i = sqrt(r1_i / r2_i)`, r the largest magnitudes,
both become `sqrt(r1_i r2_i)`, which wastes the least of both grids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from worker.engine.quantize.fold import parameter_uses

_aten = torch.ops.aten
_HOMOGENEOUS = {
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.alias.default,
    _aten.avg_pool1d.default,
    _aten.avg_pool2d.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.detach.default,
    _aten.leaky_relu.default,
    _aten.max_pool1d.default,
    _aten.max_pool2d.default,
    _aten.max_pool3d.default,
    _aten.relu.default,
    _aten.upsample_nearest2d.vec,
}
"""A positive factor on a channel before is the same factor on it after, and channels stay where they are."""
_AMONG_FEATURES = {
    _aten.alias.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.detach.default,
    _aten.leaky_relu.default,
    _aten.relu.default,
}
"""Of these those that do so for features in the last dimension as well."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SWEEPS = 20
_SETTLED = 1e-3

_Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


@dataclass(frozen=True)
class Pair:
    """Two layers, by name; all that `first` gives is read by `second`."""

    first: str
    second: str


def equalize(graph: fx.GraphModule) -> list[Pair]:
    """Equalize every pair of layers of the folded `graph`, in place, over and over along chains until factors stay
    near 1; the pairs come back. Weights that are zero stay zero."""
    pairs = find_pairs(graph)
    layers = {name: graph.get_submodule(name) for pair in pairs for name in (pair.first, pair.second)}
    exact = {name: _Exact.of(layer) for name, layer in layers.items()}
    for _ in range(_SWEEPS):
        factors = [_balance(exact[pair.first], exact[pair.second]) for pair in pairs]
        if all(bool(((factor - 1).abs() < _SETTLED).all()) for factor in factors):
            break
    for name, layer in layers.items():
        exact[name].store(layer)
    return pairs


def find_pairs(graph: fx.GraphModule) -> list[Pair]:
    """Layers, each called once and sharing no weight, between which nothing but a ReLU or a pooling lies, in order."""
    pairs = []
    for node in graph.graph.nodes:
        first = _layer(graph, node)
        if first is None:
            continue
        passed = _HOMOGENEOUS if isinstance(first, _CONVOLUTIONS) else _AMONG_FEATURES
        (reader, *others) = list(node.users) or [None]
        while reader is not None and not others and reader.op == "call_function" and reader.target in passed:
            (reader, *others) = list(reader.users) or [None]
        if reader is None or others:
            continue
        second = _layer(graph, reader)
        if second is not None and isinstance(second, nn.Linear) == isinstance(first, nn.Linear):
            pairs.append(Pair(str(node.target), str(reader.target)))
    return pairs


def _layer(graph: fx.GraphModule, node: fx.Node) -> _Layer | None:
    if node.op != "call_module":
        return None
    layer = graph.get_submodule(str(node.target))
    if not isinstance(layer, _Layer) or parameter_uses(graph, layer) > 1:
        return None
    return layer if layer.weight.is_floating_point() else None


@dataclass
class _Exact:
    """A layer's weight [outputs, inputs of a group, rest] and bias in double precision."""

    weight: Tensor
    bias: Tensor | None
    groups: int

    @classmethod
    def of(cls, layer: nn.Module) -> _Exact:
        assert isinstance(layer, _Layer)
        weight = layer.weight.detach().double()
        bias = None if layer.bias is None else layer.bias.detach().double()
        groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        return cls(weight.reshape(*weight.shape[:2], -1), bias, groups)

    def store(self, layer: nn.Module) -> None:
        assert isinstance(layer, _Layer)
        with torch.no_grad():
            layer.weight.copy_(self.weight.reshape(layer.weight.shape))
            if layer.bias is not None and self.bias is not None:
                layer.bias.copy_(self.bias)

    def by_input(self) -> Tensor:
        """[inputs, outputs of a group, rest]: what reads each input channel."""
        outputs, inputs, rest = self.weight.shape
        grouped = self.weight.reshape(self.groups, outputs // self.groups, inputs, rest)
        return grouped.transpose(1, 2).reshape(self.groups * inputs, -1, rest)


def _balance(first: _Exact, second: _Exact) -> Tensor:
    """Divide channels of `first` and multiply what reads them; the factors come back. A channel that is always zero,
    or that nothing reads, keeps its size."""
    written, read = first.weight.abs().amax((1, 2)), second.by_input().abs().amax((1, 2))
    alive = (written > 0) & (read > 0)
    factor = torch.where(alive, (written / torch.where(alive, read, 1.0)).sqrt(), 1.0)
    first.weight /= factor[:, None, None]
    if first.bias is not None:
        first.bias /= factor
    outputs, inputs, _ = second.weight.shape
    per_output = factor.reshape(second.groups, 1, inputs).expand(second.groups, outputs // second.groups, inputs)
    second.weight *= per_output.reshape(outputs, inputs, 1)
    return factor
