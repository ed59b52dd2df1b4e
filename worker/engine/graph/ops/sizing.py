"""Sizes as a rewrite or a cost rule asks for them: of the network as it is, or as a cut would leave it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, fx

from worker.engine.graph.labels import Axes, Axis
from worker.engine.graph.shapes import Sizes


class Sizing(Protocol):
    """Enough for a cost rule."""

    def sizes(self, node: fx.Node) -> Sizes:
        """Sizes of the tensor `node` gives."""

    def parameter(self, name: str) -> Sizes:
        """Sizes of a parameter or buffer."""


class Remaining(Sizing, Protocol):
    """What a cut leaves, for rewrite rules: sizes are those after the cut, labels those of the analysis."""

    def axes(self, node: fx.Node) -> Axes:
        """The labels of the tensor `node` gives."""

    def count(self, axis: Axis) -> int:
        """How many indices of a labelled dimension stay."""

    def kept(self, axis: Axis) -> Tensor | None:
        """Positions that stay on a dimension; `None` when all do."""

    def shrinks(self, axis: Axis) -> bool:
        """Whether any index of a dimension goes."""
