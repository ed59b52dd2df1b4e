"""Distances between outputs, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from worker.engine.measure.compare import (
    SQNR_LIMIT_DB,
    max_difference,
    outputs_of,
    relative_difference,
    sqnr_db,
    top1_agreement,
)


def test_differences_by_hand() -> None:
    expected, found = [torch.tensor([1.0, -4.0])], [torch.tensor([1.5, -4.0])]
    assert max_difference(expected, found) == 0.5
    assert relative_difference(expected, found) == 0.125


def test_the_ratio_is_of_powers_in_decibels() -> None:
    assert sqnr_db([torch.tensor([10.0])], [torch.tensor([9.0])]) == pytest.approx(20.0)
    assert sqnr_db([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 4.05])]) == pytest.approx(40.0, abs=1e-4)


def test_the_worst_output_counts_however_small_it_is() -> None:
    large, small = torch.full((4,), 1e3), torch.full((4,), 1e-3)
    assert sqnr_db([large, small], [large, small * 2]) == pytest.approx(0.0)
    assert relative_difference([large, small], [large, small * 2]) == pytest.approx(1.0)


def test_equal_outputs_have_the_largest_ratio() -> None:
    same = [torch.ones(3)]
    assert sqnr_db(same, same) == SQNR_LIMIT_DB
    assert relative_difference(same, same) == 0


def test_noise_without_a_signal_has_the_smallest_ratio() -> None:
    assert sqnr_db([torch.zeros(2)], [torch.ones(2)]) == -SQNR_LIMIT_DB


def test_infinities_and_nan_in_the_same_places_are_equal() -> None:
    values = [torch.tensor([math.nan, -math.inf, 1.0])]
    assert max_difference(values, values) == 0


@pytest.mark.parametrize("wrong", [torch.tensor([math.nan, 1.0]), torch.tensor([math.inf, 1.0]), torch.ones(3)])
def test_what_is_not_comparable_is_infinitely_far(wrong: torch.Tensor) -> None:
    expected = [torch.tensor([1.0, 1.0])]
    assert max_difference(expected, [wrong]) == math.inf
    assert relative_difference(expected, [wrong]) == math.inf
    assert sqnr_db(expected, [wrong]) == -SQNR_LIMIT_DB


def test_agreement_of_sequences_is_over_the_last_dimension() -> None:
    expected = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [3.0, 2.0]]])
    assert top1_agreement(expected, torch.tensor([[[0.0, 1.0], [1.0, 2.0], [9.0, 7.0]]])) == pytest.approx(2 / 3)


def test_agreement_is_over_dimension_one() -> None:
    expected = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert top1_agreement(expected, expected.flip(0)) == 0
    assert top1_agreement(expected, torch.tensor([[0.4, 0.5], [0.4, 0.5]])) == 0.5
    assert top1_agreement(expected[:, 0], expected[:, 0]) is None


def test_outputs_are_found_whatever_holds_them() -> None:
    a, b = torch.ones(1), torch.zeros(1)
    assert len(outputs_of({"first": a, "rest": (b, None, [a])})) == 3
    assert outputs_of(a) == (a,)
