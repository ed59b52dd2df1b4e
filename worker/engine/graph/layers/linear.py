"""Linear layers, also those written as a product with a two-dimensional parameter."""

from __future__ import annotations

import torch
from torch import fx, nn

from worker.engine.graph.layers.lifter import Arguments, Lifter, given, hold

_PRODUCTS = {torch.ops.aten.matmul.default: 1, torch.ops.aten.mm.default: 1, torch.ops.aten.addmm.default: 2}
"""Operators whose argument at this position is the right-hand matrix."""


def lift_linear(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    weight = lifter.parameter(arguments["weight"], 2)
    bias = lifter.parameter(arguments["bias"], 1)
    if weight is None or not given(arguments["bias"], bias):
        return False
    name = lifter.module(node, arguments["weight"], (weight, bias), nn.Linear, lambda: _linear(weight, bias))
    lifter.replace(node, name, arguments["input"])
    return True


def lift_matrix_product(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    """`x @ weight`: a linear layer that holds the transposed parameter."""
    return _lift_product(lifter, node, arguments["self"], arguments["other" if "other" in arguments else "mat2"], None)


def lift_addmm(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    """`bias + x @ weight`."""
    if arguments["beta"] != 1 or arguments["alpha"] != 1:
        return False
    return _lift_product(lifter, node, arguments["mat1"], arguments["mat2"], arguments["self"])


def _lift_product(lifter: Lifter, node: fx.Node, left: object, right: object, added: object) -> bool:
    weight = lifter.parameter(right, 2)
    bias = lifter.parameter(added, 1)
    if weight is None or not isinstance(right, fx.Node) or not isinstance(left, fx.Node) or not given(added, bias):
        return False
    if bias is not None and bias.shape[0] != weight.shape[1]:
        return False
    # A parameter that something else uses too must stay as it is: a transposed copy would break the tie.
    if id(weight) not in lifter.replaced:
        if not all(_is_right_hand(lifter, user, weight) for user in lifter.users(weight)):
            return False
        transposed = weight.detach().t().contiguous()
        lifter.replaced[id(weight)] = nn.Parameter(transposed, requires_grad=weight.requires_grad)
    turned = lifter.replaced[id(weight)]
    name = lifter.module(node, right, (turned, bias), nn.Linear, lambda: _linear(turned, bias))
    lifter.replace(node, name, left)
    return True


def _is_right_hand(lifter: Lifter, user: fx.Node, weight: nn.Parameter) -> bool:
    position = _PRODUCTS.get(user.target)  # type: ignore[call-overload]
    if position is None or len(user.args) <= position:
        return False
    others = [argument for index, argument in enumerate(user.args) if index != position]
    plain = position == 1 or not user.kwargs
    return plain and all(lifter.tensor(argument) is not weight for argument in others)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    return hold(module, weight=weight, bias=bias)
