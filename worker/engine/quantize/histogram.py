"""How often the values of a network lie where: counted batch by batch, in memory that does not grow with the data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from worker.engine.quantize.observe import Inputs, Range, Walker

BINS = 2048
"""On each side of zero: those of TensorRT (Migacz, 2017)."""


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` elements lay in part i of `2 * BINS` equal parts of [-`largest`, `largest`]: zero is an edge."""

    largest: float
    counts: NDArray[np.int64]

    @property
    def width(self) -> float:
        return self.largest / BINS

    def centres(self) -> NDArray[np.float64]:
        return (np.arange(2 * BINS, dtype=np.float64) - BINS + 0.5) * self.width

    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of the absolute values, in `BINS` parts of [0, `largest`]."""
        return self.counts[BINS:] + self.counts[:BINS][::-1]


def count(value: Tensor, largest: float) -> NDArray[np.int64]:
    """The histogram of one tensor whose magnitudes are at most `largest`; what is exactly zero lies above zero."""
    places = torch.floor(value.detach().float().flatten() * (BINS / largest)).to(torch.int32) + BINS
    return torch.bincount(places.clamp_(0, 2 * BINS - 1), minlength=2 * BINS).cpu().numpy()


def observe_histograms(
    graph: fx.GraphModule, ranges: Mapping[str, Range], batches: Iterable[Inputs]
) -> dict[str, Histogram]:
    """Of each value of `ranges`, which were observed on the same batches; those that are always zero are left out."""
    largest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    counts = {name: np.zeros(2 * BINS, np.int64) for name, most in largest.items() if most > torch.finfo().tiny}

    def see(node: fx.Node, value: Any) -> None:
        if node.name in counts:
            counts[node.name] += count(value, largest[node.name])

    walker = Walker(graph, see)
    with torch.no_grad():
        for inputs in batches:
            walker.run(*inputs)
    return {name: Histogram(largest[name], found) for name, found in counts.items()}
