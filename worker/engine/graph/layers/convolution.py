"""Convolutions, plain and transposed, in one to three dimensions."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from worker.engine.graph.layers.lifter import Arguments, Lifter, given, hold

_PLAIN: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


def lift_convolution(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    """conv1d, conv2d, conv3d with a parameter as weight; `padding` may be "same" or "valid"."""
    return _lift(lifter, node, arguments, transposed=False)


def lift_transposed_convolution(lifter: Lifter, node: fx.Node, arguments: Arguments) -> bool:
    """conv_transpose1d, 2d, 3d with a parameter as weight."""
    return _lift(lifter, node, arguments, transposed=True)


def _lift(lifter: Lifter, node: fx.Node, arguments: Arguments, transposed: bool) -> bool:
    weight = lifter.parameter(arguments["weight"])
    bias = lifter.parameter(arguments["bias"], 1)
    if weight is None or weight.dim() not in (3, 4, 5) or not given(arguments["bias"], bias):
        return False
    dimensions = weight.dim() - 2
    groups: int = arguments["groups"]
    names = ("stride", "padding", "dilation", *(("output_padding",) if transposed else ()))
    geometry = {name: _every(arguments[name], dimensions) for name in names}
    if any(isinstance(value, fx.Node) for values in geometry.values() for value in values):
        return False
    kind = (_TRANSPOSED if transposed else _PLAIN)[dimensions]
    first, second = weight.shape[0], weight.shape[1] * groups
    inner, outer = (first, second) if transposed else (second, first)

    def make() -> nn.Module:
        module: nn.Module = kind(
            inner, outer, tuple(weight.shape[2:]), groups=groups, bias=bias is not None, device="meta", **geometry
        )
        return hold(module, weight=weight, bias=bias)

    configuration = (kind, groups, *geometry.values())
    lifter.replace(
        node, lifter.module(node, arguments["weight"], (weight, bias), configuration, make), arguments["input"]
    )
    return True


def _every(value: str | int | list[int], dimensions: int) -> str | tuple[int, ...]:
    """One number an axis; a single number stands for all."""
    if isinstance(value, str):
        return value
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dimensions if len(values) == 1 else values
