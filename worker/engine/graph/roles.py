"""What a group's units are to the layers around them: attention heads, or the input features of what reads them."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

from worker.engine.graph.channels import Channels, Group, Member
from worker.engine.graph.labels import Value, axes_of

_PRODUCTS = frozenset({"scaled_dot_product_attention", "matmul", "bmm", "baddbmm", "einsum"})


def consumers(channels: Channels, group: Group) -> tuple[str, ...]:
    """Layers whose input features the units are, first to last."""
    return tuple(dict.fromkeys(m.parameter.rpartition(".")[0] for m in group.members if is_input(channels, m)))


def head_units(channels: Channels) -> frozenset[int]:
    """Units that stack products of activations: such an operator has them in all its operands and its result."""
    found: set[int] = set()
    for node in channels.graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket.__name__ in _PRODUCTS:
            sets = [_units(channels, channels.values[each.name]) for each in (node, *_factors(node))]
            found |= set.intersection(*sets)
    return frozenset(found)


def is_input(channels: Channels, member: Member) -> bool:
    """Whether the dimension is the input features of a layer: the columns of its matrix or kernel."""
    path, _, leaf = member.parameter.rpartition(".")
    layer = channels.graph.get_submodule(path)
    if isinstance(layer, nn.Linear) and leaf == "weight":
        return member.dim == 1
    if isinstance(layer, nn.modules.conv._ConvTransposeNd) and leaf == "weight":
        return member.dim == 0 and layer.groups == 1
    if isinstance(layer, nn.modules.conv._ConvNd) and leaf == "weight":
        return member.dim == 1
    return isinstance(layer, nn.RNNBase) and leaf.startswith("weight_ih") and member.dim == 1


def _factors(node: fx.Node) -> tuple[fx.Node, ...]:
    """Query, key and value, or the two matrices; not the mask, nor a term that is added."""
    operands = node.all_input_nodes
    return tuple(operands[:3] if "attention" in str(node.target) else operands[-2:])


def _units(channels: Channels, value: Value) -> set[int]:
    return {unit for axis in axes_of(value) for unit in np.unique(channels.units_of(axis)).tolist()}
