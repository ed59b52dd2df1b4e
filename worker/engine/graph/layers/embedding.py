"""Embeddings and PReLU: layers that hold one parameter."""

from __future__ import annotations

from torch import fx, nn

from worker.engine.graph.layers.lifter import Arguments, Lifter, hold


def lift_embedding(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    weight = lifter.parameter(arguments["weight"], 2)
    padding = arguments["padding_idx"]
    if weight is None or arguments["scale_grad_by_freq"] or arguments["sparse"] or isinstance(padding, fx.Node):
        return False
    padding = None if padding < 0 else padding

    def make() -> nn.Module:
        return hold(nn.Embedding(weight.shape[0], weight.shape[1], padding, device="meta"), weight=weight)

    name = lifter.module(node, arguments["weight"], (weight,), (nn.Embedding, padding), make)
    lifter.replace(node, name, arguments["indices"])
    return True


def lift_prelu(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    weight = lifter.parameter(arguments["weight"], 1)
    if weight is None:
        return False

    def make() -> nn.Module:
        return hold(nn.PReLU(weight.shape[0], device="meta"), weight=weight)

    lifter.replace(node, lifter.module(node, arguments["weight"], (weight,), nn.PReLU, make), arguments["self"])
    return True
