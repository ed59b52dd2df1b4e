"""Tables of positions: how an operator that picks channels is written once some of them are gone."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx

from worker.engine.graph.labels import Indices
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import sizes_of

INDEX_SELECT = torch.ops.aten.index_select.default
PAD = torch.ops.aten.pad.default


def table_of(node: object) -> Indices | None:
    """The positions in a row of integers that the network holds, if `node` is one."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or node.graph.owning_module is None:
        return None
    path, _, leaf = str(node.target).rpartition(".")
    tensor = getattr(node.graph.owning_module.get_submodule(path), leaf)
    if tensor.dim() != 1 or tensor.dtype not in (torch.int64, torch.int32):
        return None
    table: Indices = tensor.cpu().numpy().astype(np.int64)
    return table


def pick(node: fx.Node, remaining: Remaining, source: fx.Node, dim: int, positions: Indices) -> None:
    """Make `node`, whose index i along `dim` is index `positions[i]` of `source`, give what is left of that."""
    axis = remaining.axes(source)[dim]
    kept = remaining.kept(axis)
    if kept is None or axis is None:
        return
    place = np.full(axis.size, -1)
    place[kept.numpy()] = np.arange(len(kept))
    table = place[positions]
    node.target, node.kwargs = INDEX_SELECT, {}
    node.args = (source, dim, _constant(node, torch.from_numpy(table[table >= 0])))


def narrowed(node: fx.Node, source: fx.Node, dim: int, kept: torch.Tensor) -> fx.Node:
    """The positions `kept` of a tensor of fixed size, taken just before `node`."""
    return _insert(node, source, INDEX_SELECT, source, dim, _constant(node, kept))


def restored(node: fx.Node, source: fx.Node, dim: int, size: int, kept: torch.Tensor) -> fx.Node:
    """`source` as long as it was along `dim` just before `node`, with zeros where indices went: kept ones go back to
    their places, all others take a zero that is put behind them."""
    behind = [0] * (2 * (len(sizes_of(source)) - dim) - 1) + [1]
    padded = _insert(node, source, PAD, source, behind)
    table = torch.full((size,), len(kept))
    table[kept] = torch.arange(len(kept))
    return _insert(node, source, INDEX_SELECT, padded, dim, _constant(node, table))


def _insert(node: fx.Node, like: fx.Node, target: torch._ops.OpOverload, *args: object) -> fx.Node:
    with node.graph.inserting_before(node):
        inserted = node.graph.call_function(target, args)  # type: ignore[arg-type]
    inserted.meta = {"sizes": like.meta["sizes"], "dtype": like.meta["dtype"]}
    return inserted


def _constant(node: fx.Node, table: torch.Tensor) -> fx.Node:
    """A row of positions as a buffer of the network, read just before `node`."""
    module = node.graph.owning_module
    assert module is not None
    name, number = f"{node.name}_positions", 1
    while hasattr(module, name):
        number += 1
        name = f"{node.name}_positions_{number}"
    device = next((parameter.device for parameter in module.parameters()), None)
    module.register_buffer(name, table.to(device))
    with node.graph.inserting_before(node):
        return node.graph.get_attr(name)
