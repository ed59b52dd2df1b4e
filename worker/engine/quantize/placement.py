"""Where a network becomes integers: one policy, the same for calibration, for simulation and for the file.

What a runtime fuses into integer kernels depends only on which values are rounded (QLinearConv needs its output
rounded, MatMulIntegerToFloat does not), so that is all this decides:

- A convolution's input and output are rounded; its output after the ReLU that follows it, if one does.
- A linear layer's input is rounded. Its output is not: in a transformer that value goes into the residual stream, a
  softmax or a LayerNorm, which 8 bits ruin.
- An operator between convolutions (add, concatenation, pooling, an activation …) works on rounded values when all
  its inputs are rounded and something 8-bit reads its result. That chain ends at anything else.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import fx, nn

from worker.engine.graph.integer import INTEGER_LAYERS
from worker.engine.quantize.fold import parameter_uses

_aten = torch.ops.aten

_CLIPS = {_aten.relu.default, _aten.relu6.default}
"""Rounding to unsigned integers clips as these do: a runtime drops them, so the value before is not rounded."""

_MOVES = {
    _aten.alias.default,
    _aten.chunk.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.detach.default,
    _aten.flatten.using_ints,
    _aten.max_pool1d.default,
    _aten.max_pool2d.default,
    _aten.max_pool3d.default,
    _aten.movedim.int,
    _aten.narrow.default,
    _aten.permute.default,
    _aten.pixel_shuffle.default,
    _aten.pixel_unshuffle.default,
    _aten.reshape.default,
    _aten.select.int,
    _aten.slice.Tensor,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.swapaxes.default,
    _aten.transpose.int,
    _aten.unbind.int,
    _aten.unflatten.int,
    _aten.unsqueeze.default,
    _aten.upsample_nearest1d.vec,
    _aten.upsample_nearest2d.vec,
    _aten.view.default,
    operator.getitem,
}
"""They carry values along unchanged: their result has the scale of their input."""

_LISTS = {
    _aten.chunk.default,
    _aten.split.Tensor,
    _aten.split_with_sizes.default,
    _aten.unbind.int,
}
"""They return several tensors; the rounding follows on each of them."""

_CHAIN = {
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
    _aten.add.Tensor,
    _aten.avg_pool1d.default,
    _aten.avg_pool2d.default,
    _aten.avg_pool3d.default,
    _aten.cat.default,
    _aten.clamp.default,
    _aten.elu.default,
    _aten.hardsigmoid.default,
    _aten.hardswish.default,
    _aten.hardtanh.default,
    _aten.leaky_relu.default,
    _aten.mean.dim,
    _aten.mish.default,
    _aten.mul.Tensor,
    _aten.relu.default,
    _aten.relu6.default,
    _aten.sigmoid.default,
    _aten.silu.default,
    _aten.sub.Tensor,
    _aten.tanh.default,
    _aten.upsample_bilinear2d.vec,
}
"""They make new values: each has a range of its own."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (
    *INTEGER_LAYERS,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.GRU,
    nn.LSTM,
    nn.RNN,
)


@dataclass(frozen=True)
class Placement:
    """`layers` become 8-bit, `kept_float` (layer name: why) do not.

    `users`: for each value to round, the nodes that read the rounded one. `sources`: the value whose range it has.
    """

    layers: tuple[str, ...]
    users: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, str]
    kept_float: Mapping[str, str]


def place(graph: fx.GraphModule, skip: Sequence[str] = ()) -> Placement:
    """Decide for a folded `graph`. `skip` are globs of layer names that stay float."""
    kept_float = _kept_float(graph, skip)
    calls = [node for node in graph.graph.nodes if node.op == "call_module"]
    weighted = {node.target: graph.get_submodule(node.target) for node in calls}
    layers = [name for name, layer in weighted.items() if type(layer) in INTEGER_LAYERS and name not in kept_float]
    integer_calls = {node for node in calls if node.target in layers}
    convolved = {node for node in integer_calls if isinstance(weighted[node.target], _CONVOLUTIONS)}

    sources = _chain(graph.graph, convolved)
    ends = {_after_clip(node) for node in convolved}
    kept = _read_by_integers(graph.graph, sources, ends, integer_calls)
    users: dict[str, tuple[str, ...]] = {}
    for node in graph.graph.nodes:
        if node in kept and node.target not in _LISTS:
            users[node.name] = tuple(user.name for user in node.users)
        elif node not in kept and (readers := [user.name for user in node.users if user in integer_calls]):
            users[node.name] = tuple(readers)
            sources[node] = node
    return Placement(
        layers=tuple(layers),
        users=users,
        sources={node.name: sources[node].name for node in graph.graph.nodes if node.name in users},
        kept_float=kept_float,
    )


def weighted_layers(graph: fx.GraphModule) -> list[str]:
    """The layers with a weight that is quantized or could be, in the order of their first calls."""
    calls = dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    return [name for name in calls if isinstance(graph.get_submodule(name), WEIGHTED)]


def _kept_float(graph: fx.GraphModule, skip: Sequence[str]) -> dict[str, str]:
    """Every layer with a weight that stays float, and why."""
    reasons: dict[str, str] = {}
    for node in graph.graph.nodes:
        if node.op != "call_module" or node.target in reasons:
            continue
        layer = graph.get_submodule(node.target)
        if not isinstance(layer, WEIGHTED):
            continue
        if any(fnmatchcase(node.target, pattern) for pattern in skip):
            reasons[node.target] = "skipped by `layers`"
        elif isinstance(layer, nn.GRU | nn.LSTM | nn.RNN):
            reasons[node.target] = "recurrent layers stay in floating point"
        elif isinstance(layer, nn.Embedding):
            reasons[node.target] = "an embedding is looked up, not computed with"
        elif type(layer) not in INTEGER_LAYERS:
            reasons[node.target] = "transposed convolutions have no 8-bit kernel in the runtime"
        elif shares_weight(graph, node.target):
            reasons[node.target] = "its weight is shared with another layer"
    return reasons


def shares_weight(graph: fx.GraphModule, name: str) -> bool:
    layer = graph.get_submodule(name)
    calls: int = sum(node.op == "call_module" and node.target == name for node in graph.graph.nodes)
    return parameter_uses(graph, layer) > calls


def _after_clip(node: fx.Node) -> fx.Node:
    """The ReLU that is all that reads `node`, else `node` itself."""
    (user, *others) = list(node.users) or [node]
    return user if not others and user.target in _CLIPS else node


def _chain(graph: fx.Graph, convolved: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Every value that could be rounded for all its readers, and the value whose range it has."""
    sources: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "call_function" and node.target in _MOVES and inputs and inputs[0] in sources:
            sources[node] = sources[inputs[0]]
        elif node in convolved or (
            node.op == "call_function"
            and node.target in _CHAIN
            and inputs
            and all(value in sources for value in inputs)
        ):
            end = _after_clip(node)
            sources[end] = end
    return sources


def _read_by_integers(
    graph: fx.Graph, sources: Mapping[fx.Node, fx.Node], ends: set[fx.Node], integer_calls: set[fx.Node]
) -> set[fx.Node]:
    """Those of the chain that an 8-bit layer reads, at once or through the chain; a convolution's output always."""
    kept: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node not in sources:
            continue
        readers = {_after_clip(user) for user in node.users} | set(node.users)
        if node in ends or any(user in integer_calls or user in kept for user in readers):
            kept.add(node)
    return kept
