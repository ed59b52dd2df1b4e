"""The ranks that a rule asks of one layer, from its singular values."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from models.factors import Ranks, Way, fixed_ranks, full_ranks, possible, rounded_up
from models.inspection import FactorInfo
from models.spec import Rank
from worker.engine.factorize.vbmf import vbmf_rank


def ranks_by_rule(layer: FactorInfo, way: Way, rank: Rank, round_to: int, squares: Sequence[Tensor]) -> Ranks:
    """`squares` are the squared singular values for each rank, as `spectra` gives them."""
    if (fixed := fixed_ranks(layer, way, rank, round_to)) is not None:
        return fixed
    if rank.energy is not None:
        # What Tucker loses is at most what both sides lose by themselves, so each may lose half of it.
        lost = (1 - rank.energy) / len(squares)
        counts = [holding(own, 1 - lost) for own in squares]
    else:
        counts = [vbmf_rank(own, *shape) for own, shape in zip(squares, _shapes(layer, way), strict=True)]
    most = full_ranks(layer, way)
    return possible(
        layer, way, tuple(rounded_up(count, full, round_to) for count, full in zip(counts, most, strict=True))
    )


def holding(squares: Tensor, energy: float) -> int:
    """As few of the largest values as hold this share of their sum."""
    share = squares.cumsum(0) / squares.sum().clamp_min(1e-300)
    return int((share < energy).sum()) + 1


def _shapes(layer: FactorInfo, way: Way) -> list[tuple[int, int]]:
    """Of the matrices that the singular values are of."""
    positions = math.prod(layer.kernel)
    if way == "tucker":
        return [(layer.inputs, layer.outputs * positions), (layer.outputs, layer.inputs * positions)]
    if way == "spatial":
        rows, columns = layer.kernel
        return [(layer.outputs * columns, layer.inputs * rows)]
    return [(layer.outputs, layer.inputs * positions)]
