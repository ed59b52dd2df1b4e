"""Scores of single weights that read weights alone."""

# mypy: disable-error-code="operator"
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from tests.engine.subjects import lifted
from worker.engine.score.weights import weight_scores


def graph_with(weight: list[list[float]], folder: Path) -> fx.GraphModule:
    values = torch.tensor(weight)
    network = nn.Sequential(nn.Linear(values.shape[1], values.shape[0]))
    with torch.no_grad():
        network[0].weight.copy_(values)
    return lifted(network, (torch.zeros(2, values.shape[1]),), folder).graph


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("l1", [[1.0, 2.0], [3.0, 0.0]]),
        ("l2", [[1.0, 4.0], [9.0, 0.0]]),
        ("lamp", [[1 / 14, 4 / 13], [9 / 9, 0.0]]),
    ],
)
def test_each_criterion_is_its_formula(criterion: Any, expected: list[list[float]], tmp_path: Path) -> None:
    scores = weight_scores(graph_with([[1.0, -2.0], [-3.0, 0.0]], tmp_path), "0.weight", criterion, seed=0)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


def test_random_scores_depend_on_the_seed_and_the_parameter(tmp_path: Path) -> None:
    graph = graph_with([[1.0, -2.0], [-3.0, 0.0]], tmp_path)

    def drawn(seed: int, parameter: str = "0.weight") -> Tensor:
        return weight_scores(graph, parameter, "random", seed)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert drawn(1, "0.bias").tolist() != drawn(1)[0].tolist()
    assert bool(((drawn(1) >= 0) & (drawn(1) < 1)).all())


def test_a_criterion_for_units_scores_no_single_weights(tmp_path: Path) -> None:
    name: Any = "fpgm"
    with pytest.raises(ValueError, match="fpgm scores no single weights"):
        weight_scores(graph_with([[1.0]], tmp_path), "0.weight", name, seed=0)


def test_gradients_that_were_not_gathered_are_missed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs gradients that were not gathered"):
        weight_scores(graph_with([[1.0]], tmp_path), "0.weight", "taylor", seed=0)
