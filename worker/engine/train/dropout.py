"""Dropout and stochastic depth, put back for training where an export in eval mode left none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from worker.engine.graph.shapes import record_shapes

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase)
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_SOFTMAX = frozenset({torch.ops.aten.softmax.int, torch.ops.aten._softmax.default})
_PRODUCTS = frozenset({torch.ops.aten.matmul.default, torch.ops.aten.bmm.default})
_SUMS = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor})
_DROPOUTS = (nn.modules.dropout._DropoutNd,)


@dataclass(frozen=True)
class Noisy:
    """`network` has the modules of the network it was made from, and drops as it runs; `dropouts` and `branches` are
    how many places were found."""

    network: nn.Module
    dropouts: int
    branches: int


def with_noise(graph: fx.GraphModule, example_inputs: tuple[Tensor, ...], dropout: float, drop_path: float) -> Noisy:
    """A second graph over the same modules, for training alone; `graph` stays as it is.

    `dropout`: of what each linear layer reads (Srivastava et al., 2014) and of attention weights (Vaswani et al.,
    2017). `drop_path`: residual branches are left out sample by sample and scaled up otherwise, the l-th of L with
    probability l/L times this (Huang et al., 2016, equation 4). A residual branch is what lies between a value and a
    sum with that same value, when it has a layer with weights and no such sum inside.
    Random numbers come from torch's own generator.
    """
    record_shapes(graph, example_inputs)
    copy = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    output = copy.graph_copy(graph.graph, places)
    copy.output(output)
    dropouts = _drop_values(graph, copy, places, dropout) if dropout > 0 else 0
    branches = _residual_branches(graph) if drop_path > 0 else []
    for number, (total, branch, batch) in enumerate(branches, 1):
        place, read = places[total], places[branch]
        with copy.inserting_before(place):
            dropped = copy.call_function(left_out, (read, drop_path * number / len(branches), batch))
        place.replace_input_with(read, dropped)
    copy.lint()
    return Noisy(fx.GraphModule(graph, copy), dropouts, len(branches))


def left_out(branch: Tensor, probability: float, batch: int) -> Tensor:
    """`branch` with some samples (along dimension `batch`) at zero and the others scaled so that the mean stays."""
    shape = [size if dim == batch else 1 for dim, size in enumerate(branch.shape)]
    kept = torch.rand(shape, device=branch.device) >= probability
    return branch * kept / (1.0 - probability)


def _drop_values(graph: fx.GraphModule, copy: fx.Graph, places: dict[fx.Node, fx.Node], probability: float) -> int:
    count = 0
    dropped: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        place = places.get(node)
        if place is None:
            continue
        if node.op == "call_function" and node.target is _ATTENTION:
            arguments = [*place.args, None, 0.0][: max(5, len(place.args))]
            place.args = (*arguments[:4], probability, *arguments[5:])
            place.kwargs = {name: value for name, value in place.kwargs.items() if name != "dropout_p"}
            count += 1
            continue
        for source in _read(graph, node):
            if source.op == "placeholder" or _is(graph, source, _DROPOUTS):
                continue
            if source not in dropped:
                # As late as can be: what lies between may write into the value.
                with copy.inserting_before(place):
                    dropped[source] = copy.call_function(F.dropout, (places[source], probability, True))
                count += 1
            place.replace_input_with(places[source], dropped[source])
    return count


def _read(graph: fx.GraphModule, node: fx.Node) -> Iterable[fx.Node]:
    """What of `node`'s arguments is to be dropped from."""
    if _is(graph, node, (nn.Linear,)):
        yield from node.all_input_nodes[:1]
    elif node.op == "call_function" and node.target in _PRODUCTS:
        yield from (source for source in node.all_input_nodes if source.target in _SOFTMAX)


def _residual_branches(graph: fx.GraphModule) -> list[tuple[fx.Node, fx.Node, int]]:
    """In the order they run: the sum, the branch it adds, the dimension of the samples."""
    above: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.graph.nodes:
        above[node] = {node}.union(*(above[source] for source in node.all_input_nodes))
    found: list[tuple[fx.Node, fx.Node, int]] = []
    for node in graph.graph.nodes:
        if node.op != "call_function" or node.target not in _SUMS or len(node.all_input_nodes) != 2:
            continue
        for skip, branch in (tuple(node.all_input_nodes), tuple(node.all_input_nodes[::-1])):
            between = {each for each in above[branch] if skip in above[each]} - {skip}
            growing = branch.meta["growing"]
            inner = any(total in between for total, _, _ in found)
            alone = len(branch.users) == 1 and len(growing) == 1
            if between and alone and not inner and any(_is(graph, each, _WEIGHTED) for each in between):
                found.append((node, branch, next(iter(growing))))
                break
    return found


def _is(graph: fx.GraphModule, node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), kinds)
