"""Looking ahead: whether a value decides the output of the network with no trained layer in between."""

from __future__ import annotations

import torch
from torch import fx

_TRAINED = frozenset(
    {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "addmm", "mm"}
)


def decides_output(node: fx.Node) -> bool:
    """Whether what is made of `node` reaches the output before any layer with weights takes it in.

    Such values are answers, such as scores of classes or places on a scale: without some of them the network says less,
    and no training of what follows can make up for it.
    """
    waiting, seen = [node], {node}
    while waiting:
        for user in waiting.pop().users:
            if user.op == "output":
                return True
            if user not in seen and not _is_trained(user):
                seen.add(user)
                waiting.append(user)
    return False


def _is_trained(node: fx.Node) -> bool:
    if node.op == "call_module" and node.graph.owning_module is not None:
        module = node.graph.owning_module.get_submodule(str(node.target))
        return any(parameter.dim() > 1 for parameter in module.parameters())
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket.__name__ in _TRAINED
