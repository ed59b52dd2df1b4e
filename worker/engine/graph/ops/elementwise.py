"""Rules of operators that work value by value, with broadcasting."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from worker.engine.graph.labels import Axes, Axis
from worker.engine.graph.ops.call import Call, arguments_of, set_argument, tensor_operands
from worker.engine.graph.ops.pick import narrowed
from worker.engine.graph.ops.sizing import Remaining
from worker.engine.graph.shapes import Sizes, sizes_of

_SCALES = {"mul": ("self", "other"), "mul_": ("other",), "div": ("other",), "div_": ("other",)}
"""Operands that scale what they meet: where the other one is zero, they have no say."""


def elementwise(call: Call) -> Axes:
    """Every tensor operand is broadcast to the result; what meets, stays or goes together."""
    return broadcast(call, call.all_operands(), call.result_sizes)


def arithmetic(call: Call) -> Axes:
    """`add`, `sub`, `mul`, `div`: a scale of fixed size, and a constant, loses what met the channels that go."""
    operands = list(tensor_operands(call.arguments))
    in_place = call.node.target._schema.is_mutable  # type: ignore[union-attr]
    yielding = [
        place
        for place, (name, _, node) in enumerate(operands)
        if name in _scaling(call.node) or (node.meta["constant"] and not (in_place and name == "self"))
    ]
    return broadcast(call, call.all_operands(), call.result_sizes, yielding)


def rewrite_arithmetic(node: fx.Node, remaining: Remaining) -> None:
    result = remaining.axes(node)
    for name, _, operand in tensor_operands(arguments_of(node)):
        set_argument(node, name, narrowed_to(result, node, operand, remaining))


def narrowed_to(result: Axes, node: fx.Node, operand: fx.Node, remaining: Remaining) -> fx.Node:
    """`operand`, without what its dimensions of fixed size hold for indices of `result` that went."""
    axes, sizes = remaining.axes(operand), sizes_of(operand)
    for dim, axis in enumerate(axes):
        kept = remaining.kept(result[len(result) - len(axes) + dim])
        if axis is None and sizes[dim] > 1 and kept is not None:
            operand = narrowed(node, operand, dim, kept)
    return operand


def only_scales(node: fx.Node) -> bool:
    """Whether all that is made of `node` is a scale of something else."""
    return bool(node.users) and all(
        node in [arguments_of(user).get(name) for name in _scaling(user)]
        and [argument for argument in arguments_of(user).values() if argument is node] == [node]
        for user in node.users
    )


def _scaling(node: fx.Node) -> tuple[str, ...]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return ()
    return _SCALES.get(node.target.overloadpacket.__name__, ())


def same_as_input(call: Call) -> Axes:
    """The result has the sizes of the first operand; the others lend a type, not values (`type_as`)."""
    return call.all_operands()[0][0]


def broadcast(call: Call, operands: Sequence[tuple[Axes, Sizes]], sizes: Sizes, yielding: Collection[int] = ()) -> Axes:
    """Labels of the operands broadcast to `sizes`, aligned at the last dimension. Operands at the places `yielding`
    are narrowed after a cut where they are of fixed size; others then keep what they meet."""
    return [_meet(call, operands, sizes, dim, yielding) for dim in range(len(sizes))]


def _meet(
    call: Call, operands: Sequence[tuple[Axes, Sizes]], sizes: Sizes, dim: int, yielding: Collection[int]
) -> Axis:
    met: Axis = None
    fixed = beside_fixed = False
    for place, (axes, own) in enumerate(operands):
        position = dim - (len(sizes) - len(own))
        if position < 0:
            continue
        axis = axes[position]
        if own[position] == 1 and sizes[dim] > 1:
            call.freeze(axis, "is repeated by broadcasting")
        elif axis is None:
            grows = dim in call.node.meta["growing"]
            fixed = fixed or own[position] > 1
            beside_fixed = beside_fixed or (own[position] > 1 and (place not in yielding or grows))
        else:
            met = axis if met is None else call.tie(met, axis)
    if fixed and call.labels.is_all_soft(met):
        call.freeze(met, "is combined with a tensor of fixed size")
        return None
    if beside_fixed:
        return call.tie(None, met)
    return met
