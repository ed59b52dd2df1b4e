"""The shape of a registry row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Op:
    """An ATen overload a network may contain, such as `conv2d.default`.

    `layer` lifts a node to an `nn` module; `channels` propagates labels (without one the inputs freeze);
    `rewrite` mends the node's constants after a cut; `cost` counts multiply-accumulates (without one: zero).
    """

    name: str
    layer: Callable[..., Any] | None = None
    channels: Callable[..., Any] | None = None
    rewrite: Callable[..., Any] | None = None
    cost: Callable[..., Any] | None = None
