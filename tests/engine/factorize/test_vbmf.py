"""Ranks out of noise, against the formulas of Nakajima et al., JMLR 2013."""

from __future__ import annotations

import math

import pytest
import torch

from worker.engine.factorize.vbmf import critical, free_energy, noise_variance, threshold, vbmf_rank


def noisy(rows: int, columns: int, rank: int, noise: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return normal(rows, rank) @ normal(rank, columns) + noise * normal(rows, columns)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.7, 1.0])
def test_the_critical_point_is_the_zero_of_xi_and_near_its_published_approximation(alpha: float) -> None:
    tau = critical(alpha)

    def phi(z: float) -> float:
        return math.log(z + 1) / z - 0.5

    assert phi(tau) + phi(tau / alpha) == pytest.approx(0.0, abs=1e-12)
    assert tau == pytest.approx(2.5129 * math.sqrt(alpha), rel=0.06)


@pytest.mark.parametrize(("rows", "columns"), [(30, 80), (80, 30), (40, 40)])
def test_the_noise_is_where_the_free_energy_is_least_and_about_what_was_added(rows: int, columns: int) -> None:
    squares = torch.linalg.svdvals(noisy(rows, columns, 5, 0.5)).square()
    small, large = sorted((rows, columns))
    found = noise_variance(squares, small, large)
    assert found == pytest.approx(0.25, rel=0.1)
    least = free_energy(squares, found, small, large)
    for factor in torch.logspace(-1, 1, 201).tolist():
        assert least <= free_energy(squares, found * factor, small, large) + 1e-9


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_rank_under_noise_is_found(rank: int) -> None:
    matrix = noisy(40, 100, rank, 0.5)
    assert vbmf_rank(torch.linalg.svdvals(matrix).square(), 40, 100) == rank
    assert vbmf_rank(torch.linalg.svdvals(matrix.T).square(), 100, 40) == rank


def test_noise_alone_has_no_rank_and_zeros_have_none_either() -> None:
    squares = torch.linalg.svdvals(noisy(40, 100, 1, 1.0) - noisy(40, 100, 1, 0.0)).square()
    assert vbmf_rank(squares, 40, 100) == 0
    assert vbmf_rank(torch.zeros(40, dtype=torch.float64), 40, 100) == 0


def test_the_threshold_is_above_the_largest_value_that_noise_has() -> None:
    small, large, variance = 60, 150, 0.3
    noise = math.sqrt(variance) * noisy(small, large, 1, 1.0) - math.sqrt(variance) * noisy(small, large, 1, 0.0)
    largest = float(torch.linalg.svdvals(noise)[0].square())
    edge = large * variance * (1 + math.sqrt(small / large)) ** 2  # Marchenko and Pastur, 1967
    assert largest == pytest.approx(edge, rel=0.1)
    assert threshold(variance, small, large) > edge
