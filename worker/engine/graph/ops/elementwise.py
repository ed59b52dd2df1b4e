"""Rules of operators that work value by value, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

from worker.engine.graph.labels import Axes, Axis
from worker.engine.graph.ops.call import Call
from worker.engine.graph.shapes import Sizes


def elementwise(call: Call) -> Axes:
    """Every tensor operand is broadcast to the result; what meets, stays or goes together."""
    return broadcast(call, call.all_operands(), call.result_sizes)


def same_as_input(call: Call) -> Axes:
    """The result has the sizes of the first operand; the others lend a type, not values (`type_as`)."""
    return call.all_operands()[0][0]


def broadcast(call: Call, operands: Sequence[tuple[Axes, Sizes]], sizes: Sizes) -> Axes:
    """Labels of the operands broadcast to `sizes`, aligned at the last dimension."""
    return [_meet(call, operands, sizes, dim) for dim in range(len(sizes))]


def _meet(call: Call, operands: Sequence[tuple[Axes, Sizes]], sizes: Sizes, dim: int) -> Axis:
    met: Axis = None
    beside_fixed = False
    for axes, own in operands:
        position = dim - (len(sizes) - len(own))
        if position < 0:
            continue
        axis = axes[position]
        if own[position] == 1 and sizes[dim] > 1:
            call.freeze(axis, "is repeated by broadcasting")
        elif axis is None:
            beside_fixed = beside_fixed or own[position] > 1
        else:
            met = axis if met is None else call.tie(met, axis)
    if beside_fixed:
        return call.tie(None, met)
    return met
