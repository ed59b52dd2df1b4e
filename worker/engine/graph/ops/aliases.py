"""Which operators share memory with their operands: only others may be given a copy of one."""

from __future__ import annotations

import torch
from torch import fx


def shares_memory(node: fx.Node) -> bool:
    """Whether what `node` gives may be an operand of it, as it was or changed."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    return any(argument.alias_info is not None for argument in node.target._schema.arguments)
