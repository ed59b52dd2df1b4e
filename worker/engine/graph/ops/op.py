"""The shape of a registry row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._ops import OpOverload

from worker.engine.graph.labels import Value
from worker.engine.graph.ops.call import Call
from worker.engine.graph.ops.sizing import Remaining, Sizing


@dataclass(frozen=True)
class Op:
    """An ATen overload a network may contain, such as `conv2d.default`.

    `compose` puts the operator it was decomposed from in a node's place when the network is read; `layer` lifts a node
    to an `nn` module; `channels` propagates labels (without one the inputs freeze); `rewrite` mends the node's
    constants after a cut; `cost` counts multiply-accumulates (without one: zero).
    """

    name: str
    layer: Callable[..., Any] | None = None
    channels: Callable[[Call], Value] | None = None
    rewrite: Callable[[fx.Node, Remaining], None] | None = None
    cost: Callable[[fx.Node, Sizing], int] | None = None
    compose: Callable[[fx.Node], None] | None = None


def operator_name(overload: OpOverload) -> str:
    """`conv2d.default`, as the registry has it."""
    return f"{overload.overloadpacket.__name__}.{overload._overloadname}"
