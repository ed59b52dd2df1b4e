"""A network twice, its weights once."""

from __future__ import annotations

import copy

from torch import fx, nn


def sharing_copy(graph: fx.GraphModule) -> fx.GraphModule:
    """Nodes and modules of its own, whose parameters and buffers are the memory of those of `graph`.

    Which of them learn is for each of the two to say; what is written to one is written to both.
    """
    shared: dict[int, object] = {id(buffer): buffer for buffer in graph.buffers()}
    for parameter in graph.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return copy.deepcopy(graph, shared)
