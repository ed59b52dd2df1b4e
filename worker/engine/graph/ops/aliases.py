"""Which tensors share memory: an operator may be given, or may give, a copy only where nobody writes."""

from __future__ import annotations

import torch
from torch import fx


def shares_memory(node: fx.Node) -> bool:
    """Whether what `node` gives may be an operand of it, as it was or changed."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(argument.alias_info is not None for argument in node.target._schema.arguments)


def is_written_after(node: fx.Node) -> bool:
    """Whether an operator behind `node` writes into what it gives, or into a tensor that shares memory with it."""
    owner, later = _owner(node), node.next
    while later.op != "root":
        writes = isinstance(later.target, torch._ops.OpOverload) and later.target._schema.is_mutable
        if writes and any(_owner(source) is owner for source in later.all_input_nodes):
            return True
        later = later.next
    return False


def _owner(node: fx.Node) -> fx.Node:
    """The node that first made the memory, as far as the schemas tell."""
    while shares_memory(node) and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
