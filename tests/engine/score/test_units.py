"""Scores that read weights alone, of networks small enough to do by hand, against their formula."""

# mypy: disable-error-code="operator"
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from models.criteria import CRITERIA, WEIGHT_CRITERIA, Aggregate, Normalize, UnitCriterion
from tests.engine.subjects import lifted, subject_of
from tests.networks import NETWORKS
from worker.engine.graph.channels import Channels, Group, analyse
from worker.engine.score.criteria import CRITERIA as ARITHMETIC
from worker.engine.score.slices import Scores
from worker.engine.score.units import Scoring, unit_scores, unscorable


def two_layers(folder: Path) -> tuple[Channels, Group]:
    """Three hidden units: rows (3, 4), (6, 8), (0, 5) in; columns 1, 2, 6 out."""
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, -4.0], [6.0, 8.0], [0.0, 5.0]]))
        network[0].bias.fill_(1000.0)
        network[2].weight.copy_(torch.tensor([[1.0, -2.0, 6.0]]))
    x = torch.zeros(2, 2)
    channels = analyse(lifted(network, (x,), folder).graph, (x,))
    (group,) = channels.groups
    return channels, group


def test_l2_is_the_mean_of_each_parameters_norms_over_their_mean(tmp_path: Path) -> None:
    rows, columns = np.array([5.0, 10.0, 5.0]), np.array([1.0, 2.0, 6.0])
    expected = (rows / rows.mean() + columns / columns.mean()) / 2
    np.testing.assert_allclose(unit_scores(*two_layers(tmp_path), Scoring("l2"), seed=0), expected)


def test_l1_adds_magnitudes(tmp_path: Path) -> None:
    rows, columns = np.array([7.0, 14.0, 5.0]), np.array([1.0, 2.0, 6.0])
    expected = (rows / rows.mean() + columns / columns.mean()) / 2
    np.testing.assert_allclose(unit_scores(*two_layers(tmp_path), Scoring("l1"), seed=0), expected)


def test_lamp_is_a_units_share_of_all_that_are_not_smaller(tmp_path: Path) -> None:
    rows = np.array([25 / 150, 100 / 100, 25 / 125])  # Squares 25, 100, 25; of equal ones the first comes first.
    columns = np.array([1 / 41, 4 / 40, 36 / 36])
    got = unit_scores(*two_layers(tmp_path), Scoring("lamp", normalize="none"), seed=0)
    np.testing.assert_allclose(got, (rows + columns) / 2)


def test_fpgm_adds_up_the_distances_to_the_other_units(tmp_path: Path) -> None:
    first, second, third = np.sqrt(153), np.sqrt(90), np.sqrt(45)  # Between (3, -4), (6, 8) and (0, 5).
    rows = np.array([first + second, first + third, second + third])
    columns = np.array([3.0 + 5.0, 3.0 + 8.0, 5.0 + 8.0])  # Between 1, -2 and 6.
    got = unit_scores(*two_layers(tmp_path), Scoring("fpgm", normalize="none"), seed=0)
    np.testing.assert_allclose(got, (rows + columns) / 2)


def test_fpgm_gives_up_one_of_two_twins_however_large(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[9.0, 9.0], [9.0, 9.0], [1.0, 0.0], [18.0, 17.0]]))
        network[2].weight.fill_(1.0)
    x = torch.zeros(2, 2)
    channels = analyse(lifted(network, (x,), tmp_path).graph, (x,))
    scores = unit_scores(channels, channels.groups[0], Scoring("fpgm"), seed=0)
    assert scores[0] == scores[1] == scores.min()
    assert unit_scores(channels, channels.groups[0], Scoring("l2"), seed=0).argmin() == 2


def normalised(folder: Path) -> Channels:
    """A convolution with BatchNorm, whose scales are 3, -1, 0.5, and one without; then the output."""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([3.0, -1.0, 0.5]))
    x = torch.zeros(2, 1, 4, 4)
    return analyse(lifted(network, (x,), folder).graph, (x,))


def test_bn_gamma_is_the_magnitude_of_the_scale_alone(tmp_path: Path) -> None:
    channels = normalised(tmp_path)
    group = next(group for group in channels.groups if "1" in group.layers)
    scoring = Scoring("bn_gamma", normalize="none")
    np.testing.assert_array_equal(unit_scores(channels, group, scoring, seed=0), [3.0, 1.0, 0.5])


def test_a_group_without_batch_norm_has_no_bn_gamma(tmp_path: Path) -> None:
    channels = normalised(tmp_path)
    bare = next(group for group in channels.groups if "1" not in group.layers)
    assert unscorable(channels, bare, "bn_gamma") == "has no BatchNorm with a scale, which `bn_gamma` ranks by"
    assert unscorable(channels, bare, "l2") is None
    with pytest.raises(ValueError, match="has no BatchNorm"):
        unit_scores(channels, bare, Scoring("bn_gamma"), seed=0)


ROWS, COLUMNS = np.array([7.0, 14.0, 5.0]), np.array([1.0, 2.0, 6.0])
"""What `l1` makes of the two parameters of `two_layers`."""
PROPORTIONS: dict[Normalize, Callable[[Scores], Scores]] = {
    "none": lambda scores: scores,
    "mean": lambda scores: scores / (scores.sum() / 3),
    "sum": lambda scores: scores / scores.sum(),
    "max": lambda scores: scores / max(scores),
    "standard": lambda scores: (scores - scores.mean()) / np.sqrt(((scores - scores.mean()) ** 2).mean()),
}
TOGETHER: dict[Aggregate, Callable[[Scores, Scores], Scores]] = {
    "mean": lambda one, other: (one + other) / 2,
    "sum": lambda one, other: one + other,
    "max": np.maximum,
}


@pytest.mark.parametrize("normalize", PROPORTIONS)
@pytest.mark.parametrize("aggregate", TOGETHER)
def test_scores_are_set_in_proportion_and_put_together_in_either_order(
    normalize: Normalize, aggregate: Aggregate, tmp_path: Path
) -> None:
    channels, group = two_layers(tmp_path)
    proportion, together = PROPORTIONS[normalize], TOGETHER[aggregate]
    first = unit_scores(channels, group, Scoring("l1", aggregate, normalize, "parameters"), seed=0)
    np.testing.assert_allclose(first, together(proportion(ROWS), proportion(COLUMNS)))
    last = unit_scores(channels, group, Scoring("l1", aggregate, normalize, "group"), seed=0)
    np.testing.assert_allclose(last, proportion(together(ROWS, COLUMNS)))


@pytest.mark.parametrize("normalize", PROPORTIONS)
def test_scores_that_are_all_zero_stay_so_whatever_they_are_divided_by(normalize: Normalize, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    x = torch.zeros(2, 2)
    channels = analyse(lifted(network, (x,), tmp_path).graph, (x,))
    for criterion in ("l1", "l2", "lamp", "fpgm"):
        scores = unit_scores(channels, channels.groups[0], Scoring(criterion, normalize=normalize), seed=0)
        np.testing.assert_array_equal(scores, np.zeros(3))


def test_the_two_tables_of_criteria_have_the_same_rows() -> None:
    assert list(ARITHMETIC) == list(CRITERIA) == list(get_args(UnitCriterion))
    for name, row in ARITHMETIC.items():
        assert (row.statistic is not None) == (CRITERIA[name].needs == "gradients")
        assert (row.weights is not None or name == "random") == (name in WEIGHT_CRITERIA or name == "bn_gamma")


@pytest.mark.parametrize("name", ["resnet18", "vit", "lstm", "two_towers"])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_every_group_has_mean_score_one(name: str, criterion: str) -> None:
    channels = analyse(subject_of(name).graph, NETWORKS[name]()[1])
    for group in channels.groups:
        assert unit_scores(channels, group, Scoring(criterion), seed=0).mean() == pytest.approx(1.0)  # type: ignore[arg-type]


def test_a_head_is_scored_by_all_its_rows() -> None:
    channels = analyse(subject_of("vit").graph, NETWORKS["vit"]()[1])
    group = next(group for group in channels.groups if group.id == "blocks.0.attn.qkv")
    weights = dict(channels.graph.named_parameters())
    rows = weights["blocks.0.attn.qkv.weight"].detach().double().reshape(3, 4, 12, 48).pow(2).sum((0, 2, 3)).sqrt()
    columns = weights["blocks.0.attn.proj.weight"].detach().double().reshape(48, 4, 12).pow(2).sum((0, 2)).sqrt()
    expected = (rows / rows.mean() + columns / columns.mean()) / 2
    np.testing.assert_allclose(unit_scores(channels, group, Scoring("l2"), seed=0), expected.numpy())


def test_random_scores_depend_on_the_seed_alone() -> None:
    channels = analyse(subject_of("resnet18").graph, NETWORKS["resnet18"]()[1])
    first, second = channels.groups[:2]
    drawn = unit_scores(channels, first, Scoring("random", normalize="none"), seed=7)
    np.testing.assert_array_equal(drawn, unit_scores(channels, first, Scoring("random", normalize="none"), seed=7))
    assert not np.array_equal(drawn, unit_scores(channels, first, Scoring("random", normalize="none"), seed=8))
    assert not np.array_equal(drawn, unit_scores(channels, second, Scoring("random", normalize="none"), seed=7))
    assert ((drawn >= 0) & (drawn < 1)).all()
    summed = unit_scores(channels, first, Scoring("random", "sum", "max"), seed=7)
    np.testing.assert_array_equal(summed, drawn / drawn.max())


def test_a_parameter_of_zeros_scores_nothing(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, -4.0], [6.0, 8.0], [0.0, 5.0]]))
        network[1].weight.zero_()
    x = torch.zeros(2, 2)
    channels = analyse(lifted(network, (x,), tmp_path).graph, (x,))
    np.testing.assert_allclose(
        unit_scores(channels, channels.groups[0], Scoring("l2"), seed=0), np.array([0.375, 0.75, 0.375])
    )
