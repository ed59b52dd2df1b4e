"""Scores of hand-sized networks against their formula."""

# mypy: disable-error-code="operator"
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.subjects import lifted, subject_of
from tests.networks import NETWORKS
from worker.engine.graph.channels import Channels, Group, analyse
from worker.engine.score.units import Scoring, unit_scores


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
    drawn = unit_scores(channels, first, Scoring("random"), seed=7)
    np.testing.assert_array_equal(drawn, unit_scores(channels, first, Scoring("random"), seed=7))
    assert not np.array_equal(drawn, unit_scores(channels, first, Scoring("random"), seed=8))
    assert not np.array_equal(drawn, unit_scores(channels, second, Scoring("random"), seed=7))
    assert ((drawn >= 0) & (drawn < 1)).all()


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
