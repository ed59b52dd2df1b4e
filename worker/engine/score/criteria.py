"""The criteria of `models/criteria.py` as arithmetic: one row each.

w is a weight, g its gradient for one sample, E the mean over samples, Σ the sum over what a unit owns in one parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.criteria import UnitCriterion
from worker.engine.score.gradients import Moments, Statistic
from worker.engine.score.slices import Scores, Slices

LARGEST_BLOCK = 1 << 22
"""Values that FPGM widens to double precision at once."""


@dataclass(frozen=True)
class Criterion:
    """`weights` gives a score for each entry of a tensor; `units` for each unit of a parameter cut into units (without
    it the sum over entries). `statistic`: what gradients are gathered for. None where it has no such meaning."""

    weights: Callable[[Tensor, Moments], Tensor] | None = None
    units: Callable[[Slices, Moments], Scores] | None = None
    statistic: Statistic | None = None


def _needed(statistic: Tensor | None) -> Tensor:
    if statistic is None:
        raise ValueError("this criterion needs gradients that were not gathered")
    return statistic


def _magnitude(weight: Tensor, _: Moments) -> Tensor:
    """|w|."""
    return weight.abs()


def _square(weight: Tensor, _: Moments) -> Tensor:
    """w²; a norm is the root of its sum."""
    return weight.square()


def _norm(slices: Slices, _: Moments) -> Scores:
    """√Σ w²."""
    return np.sqrt(slices.sum(slices.tensor.detach().double().square()))


def _lamp(weight: Tensor, _: Moments) -> Tensor:
    """w² over the sum of the squares of all weights of the tensor that are not smaller (Lee et al., 2021)."""
    squares = weight.double().square().flatten()
    return _share_of_the_larger(squares).reshape(weight.shape)


def _unit_lamp(slices: Slices, _: Moments) -> Scores:
    """The same with Σ w² of a unit in the place of w²: what Torch-Pruning does with channels."""
    return _share_of_the_larger(torch.from_numpy(slices.sum(slices.tensor.detach().double().square()))).numpy()


def _share_of_the_larger(squares: Tensor) -> Tensor:
    """Each value over the sum of those that come at or after it in rising order; zeros score nothing."""
    rising, order = squares.sort(stable=True)
    following = rising.flip(0).cumsum(0).flip(0)
    shares = torch.where(rising > 0, rising / following, rising)
    return torch.empty_like(shares).scatter_(0, order, shares)


def _geometric_median(slices: Slices, _: Moments) -> Scores:
    """The distances from a unit's vector to those of all units of its group, added up: the vector nearest to the
    geometric median is the one that the others can stand in for (He et al., 2019)."""
    vectors = slices.vectors()
    products = torch.zeros(slices.count, slices.count, dtype=torch.float64, device=vectors.device)
    width = max(1, LARGEST_BLOCK // slices.count)
    for start in range(0, vectors.shape[1], width):
        wide = vectors[:, start : start + width].double()
        products += wide @ wide.T
    norms = products.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2.0 * products).clamp_min(0.0).fill_diagonal_(0.0).sqrt()
    return np.asarray(distances.sum(1).cpu().numpy())


def _gradient(_: Tensor, moments: Moments) -> Tensor:
    """E|g|: how far the loss moves with the weight (Mozer and Smolensky, 1988, ask it of a unit)."""
    return _needed(moments.magnitude)


def _taylor(weight: Tensor, moments: Moments) -> Tensor:
    """E|w g|: to first order, how far the loss of a sample moves when the weight is set to zero (Molchanov et al.,
    2019, who take its square)."""
    return weight.abs() * _needed(moments.magnitude)


def _hessian(weight: Tensor, moments: Moments) -> Tensor:
    """½ w² E[g²]: the saliency of Optimal Brain Damage (LeCun et al., 1989) with the diagonal of the
    Fisher information in the place of the Hessian's."""
    return 0.5 * weight.square() * _needed(moments.square)


def _fisher(slices: Slices, moments: Moments) -> Scores:
    """½ E[(Σ w g)²]: a unit's weights go together, so their effects on a sample's loss add up before they are squared
    (Theis et al., 2018; the joint importance of Molchanov et al., 2019)."""
    if slices.dim not in moments.joint:
        raise ValueError("this criterion needs gradients that were not gathered")
    own = slices.places < slices.count
    scores = np.zeros(slices.count)
    scores[slices.places[own]] = moments.joint[slices.dim][own]
    return 0.5 * scores


CRITERIA: dict[UnitCriterion, Criterion] = {
    "random": Criterion(),
    "l1": Criterion(weights=_magnitude),
    "l2": Criterion(weights=_square, units=_norm),
    "fpgm": Criterion(units=_geometric_median),
    "lamp": Criterion(weights=_lamp, units=_unit_lamp),
    "bn_gamma": Criterion(weights=_magnitude),
    "gradient": Criterion(weights=_gradient, statistic="magnitude"),
    "taylor": Criterion(weights=_taylor, statistic="magnitude"),
    "hessian": Criterion(weights=_hessian, statistic="square"),
    "fisher": Criterion(units=_fisher, statistic="joint"),
}
