"""Masks worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.spec import Blocks, NOfM
from models.spec_sparsify import Pattern
from worker.engine.sparsify.matrices import Weight
from worker.engine.sparsify.patterns import below, block_scores, misfit, n_of_m, smallest, spread


def of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_the_two_largest_of_every_four_stay() -> None:
    scores = of([4, 1, 3, 2, 0, 5, 5, 5], [9, 8, 7, 6, 1, 2, 3, 4])
    expected = of([1, 0, 1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 0, 1, 1]).bool()
    assert torch.equal(n_of_m(scores, 2, 4), expected)


def test_one_of_two_and_three_of_four() -> None:
    scores = of([1, 2, 4, 3])
    assert torch.equal(n_of_m(scores, 1, 2), of([0, 1, 1, 0]).bool())
    assert torch.equal(n_of_m(scores, 3, 4), of([0, 1, 1, 1]).bool())


def test_a_blocks_score_is_the_mean_of_its_weights() -> None:
    scores = of([1, 3, 0, 0], [5, 7, 0, 4], [1, 1, 2, 2], [1, 1, 2, 2])[None]
    assert torch.equal(block_scores(scores, 2, 2), of([4, 1], [1, 2])[None])
    assert torch.equal(block_scores(scores, 4, 1), of([2, 3, 1, 2])[None])
    assert torch.equal(spread(of([1, 0], [0, 1])[None], 2, 1)[0], of([1, 0], [1, 0], [0, 1], [0, 1]))


def test_the_smallest_of_all_tensors_together_go() -> None:
    first, second = smallest([of([5, 1, 2]), of([9, 3, 4])], 0.5)
    assert first.tolist() == [[True, False, False]]
    assert second.tolist() == [[True, False, True]]


def test_of_equal_scores_the_first_go_and_no_tensor_is_emptied() -> None:
    (only,) = smallest([of([2, 2, 2, 2])], 0.5)
    assert only.tolist() == [[True, False, False, True]], "the first of the best is kept whatever happens"
    weak, strong = smallest([of([1, 1, 1, 1]), of([8, 9, 7, 6])], 0.75)
    assert weak.tolist() == [[True, False, False, False]]
    assert strong.tolist() == [[False, True, False, False]]


def test_what_asks_for_all_leaves_one_in_each() -> None:
    masks = smallest([of([1, 2]), of([3, 4])], 0.99)
    assert [mask.tolist() for mask in masks] == [[[False, True]], [[False, True]]]


def test_scores_below_the_threshold_go_and_never_all() -> None:
    assert below(of([0.1, 0.5, 0.2, 0.6]), 0.5).tolist() == [[False, True, False, True]]
    assert below(of([0.1, 0.3, 0.2]), 0.5).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("pattern", "sizes", "reason"),
    [
        ("weights", (3, 3, 3), None),
        (NOfM(n_of_m=(2, 4)), (3, 8, 8), None),
        (NOfM(n_of_m=(2, 4)), (16, 3, 3), "3 inputs are no multiple of 4"),
        (NOfM(n_of_m=(2, 4)), (16, 8, 2), "2 inputs are no multiple of 4"),
        (Blocks(block=(4, 1)), (8, 3, 3), None),
        (Blocks(block=(4, 1)), (10, 3, 3), "10 outputs are no multiple of 4"),
        (Blocks(block=(1, 4)), (10, 6, 6), "6 inputs are no multiple of 4"),
    ],
)
def test_a_pattern_fits_sizes_it_divides(pattern: Pattern, sizes: tuple[int, int, int], reason: str | None) -> None:
    assert misfit(pattern, *sizes) == reason


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 3, 2), (4, 6, 2, 3, 2)])
def test_matrices_are_outputs_by_inputs_for_each_position_and_go_back(shape: tuple[int, ...], transposed: bool) -> None:
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    weight = Weight("layer", "layer.weight", nn.Parameter(values), transposed, 1)
    matrices = weight.matrices(values)
    outputs, inputs = (6, 4) if transposed else (4, 6)
    assert matrices.shape[1:] == (outputs, inputs)
    place = (1, 2) if transposed else (2, 1)
    assert torch.equal(matrices[:, 2, 1], values[place].flatten())
    assert torch.equal(weight.restored(matrices), values)
