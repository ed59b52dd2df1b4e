"""How many singular values stand out of noise: empirical variational Bayesian matrix factorization, solved by formula.

Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14, 2013; theorems and equations below are theirs. For an L x M matrix, L <= M, alpha = L / M.
"""

from __future__ import annotations

import math
from functools import lru_cache

from torch import Tensor

_GRID = 400
_GOLDEN = (math.sqrt(5) - 1) / 2


def vbmf_rank(squares: Tensor, rows: int, columns: int) -> int:
    """The rank that the global solution keeps, of a matrix with these squared singular values (all of them, largest
    first). None may be left; a layer needs one, so that is for the caller to see to."""
    small, large = sorted((rows, columns))
    variance = noise_variance(squares, small, large)
    return int((squares > threshold(variance, small, large)).sum())


def threshold(variance: float, small: int, large: int) -> float:
    """Of a squared singular value: theorem 2, M sigma^2 (1 + tau)(1 + alpha / tau) with tau as `critical` gives it."""
    return large * variance * _edge(small / large)


def critical(alpha: float) -> float:
    """The zero of Xi(tau; alpha) = Phi(tau) + Phi(tau / alpha), Phi(z) = log(z + 1) / z - 1 / 2 (theorem 2); about
    2.5129 sqrt(alpha)."""

    def xi(tau: float) -> float:
        return math.log1p(tau) / tau + alpha * math.log1p(tau / alpha) / tau - 1.0

    low, high = 1e-9, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if xi(middle) > 0 else (low, middle)
    return (low + high) / 2


def noise_variance(squares: Tensor, small: int, large: int) -> float:
    """The variance that minimises the free energy, between the bounds of theorem 3."""
    if float(squares.sum()) <= 0:
        return 0.0
    alpha = small / large
    edge = _edge(alpha)
    last = min(math.ceil(small / (1 + alpha)) - 1, small - 1)
    highest = float(squares.sum()) / (small * large)
    tail = squares[last:]
    lowest = max(float(squares[last]) / (large * edge), float(tail.mean()) / large)
    if lowest >= highest or lowest <= 0:
        return max(highest * 1e-12, min(lowest, highest))

    def energy(logarithm: float) -> float:
        return free_energy(squares, math.exp(logarithm), small, large)

    step = (math.log(highest) - math.log(lowest)) / _GRID
    points = [math.log(lowest) + place * step for place in range(_GRID + 1)]
    best = min(points, key=energy)
    low, high = max(points[0], best - step), min(points[-1], best + step)
    for _ in range(60):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if energy(left) < energy(right) else (left, high)
    return math.exp(min((best, (low + high) / 2), key=energy))


def free_energy(squares: Tensor, variance: float, small: int, large: int) -> float:
    """Omega(sigma^2) up to terms without it: the sum over h of psi(x_h), x_h = gamma_h^2 / (M sigma^2), where psi(x) is
    x - log(x), plus log(tau + 1) + alpha log(tau / alpha + 1) - tau for x above the edge (theorem 3). Of log(x) only
    the variance counts."""
    alpha = small / large
    values = squares / (large * variance)
    above = values[values > _edge(alpha)]
    centred = above - (1 + alpha)
    tau = (centred + (centred.square() - 4 * alpha).sqrt()) / 2
    more = ((tau + 1).log() + alpha * (tau / alpha + 1).log() - tau).sum()
    return float(values.sum() + more) + small * math.log(variance)


@lru_cache
def _edge(alpha: float) -> float:
    tau = critical(alpha)
    return (1 + tau) * (1 + alpha / tau)
