"""Scores that read gradients, of a network small enough to differentiate by hand, against their formula."""

# mypy: disable-error-code="operator, no-any-return"
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.criteria import CRITERIA, UnitCriterion, needs_gradients
from models.errors import Code, Failure
from models.spec import Data
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from worker.engine.data.dataset import open_dataset
from worker.engine.graph.channels import Channels, analyse
from worker.engine.run import Run
from worker.engine.score.gradients import Gradients, Statistic, gather
from worker.engine.score.groups import score_groups
from worker.engine.score.units import Scoring, statistics_for, unit_scores
from worker.engine.score.weights import weight_scores
from worker.engine.subject import Subject

GRADIENT_CRITERIA: list[UnitCriterion] = [name for name in CRITERIA if needs_gradients(name)]
ALL: tuple[Statistic, ...] = ("magnitude", "square", "joint")


def by_hand(folder: Path, **arrays: Any) -> tuple[Subject, Run, Channels]:
    """y = (1, -2, 1) relu(W x) with the rows (1, 2), (-1, 1), (0, 3) in W; two training samples, (1, 2) and (2, 1).

    y is 9 and 7. With the label 8 for both, dL/dy is 2 and -2, and the gradients are
    W: (2, 4), (-4, -8), (2, 4) and (-4, -2), (0, 0), (-4, -2); v: (10, 2, 12) and (-8, 0, -6).
    """
    network = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 1.0], [0.0, 3.0]]))
        network[2].weight.copy_(torch.tensor([[1.0, -2.0, 1.0]]))
    subject = lifted(network, (torch.ones(2, 2),), folder)
    x = np.array([[1, 2], [2, 1], [5, 5], [7, 7]], dtype=np.float32)
    np.savez(folder / "data.npz", **{"x": x, "split": np.array(["train", "train", "val", "test"])} | arrays)
    data = open_dataset(folder / "data.npz", Data(dataset="dat_test"), subject.inputs, seed=0)
    return subject, run_in(folder, data=data), analyse(subject.graph, subject.example_inputs())


LABELS = np.full((4, 1), 8.0, dtype=np.float32)
EXPECTED: dict[UnitCriterion, tuple[list[float], list[float]]] = {
    "gradient": ([3 + 3, 2 + 4, 3 + 3], [9, 1, 9]),
    "taylor": ([1 * 3 + 2 * 3, 1 * 2 + 1 * 4, 3 * 3], [1 * 9, 2 * 1, 1 * 9]),
    "hessian": ([(1 * 10 + 4 * 10) / 2, (1 * 8 + 1 * 32) / 2, 9 * 10 / 2], [1 * 82 / 2, 4 * 2 / 2, 1 * 90 / 2]),
    "fisher": ([(10**2 + 8**2) / 4, 4**2 / 4, (12**2 + 6**2) / 4], [(10**2 + 8**2) / 4, 4**2 / 4, (12**2 + 6**2) / 4]),
}
"""By parameter: the three rows of W, the three entries of v."""


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_each_criterion_is_its_formula(criterion: UnitCriterion, tmp_path: Path) -> None:
    subject, run, channels = by_hand(tmp_path, y=LABELS)
    (group,) = channels.groups
    scoring = Scoring(criterion, aggregate="sum", normalize="none")
    (scores,), gradients = score_groups(subject, run, channels, [(group, scoring)], 512, seed=0)
    assert gradients is not None
    assert (gradients.loss, gradients.samples) == ("task", 2)
    rows, columns = EXPECTED[criterion]
    np.testing.assert_allclose(scores, np.add(rows, columns), rtol=1e-6)


@pytest.mark.parametrize(
    ("criterion", "rows"),
    [
        ("gradient", [[3.0, 3.0], [2.0, 4.0], [3.0, 3.0]]),
        ("taylor", [[3.0, 6.0], [2.0, 4.0], [0.0, 9.0]]),
        ("hessian", [[5.0, 20.0], [4.0, 16.0], [0.0, 45.0]]),
    ],
)
def test_each_weight_has_a_score_of_its_own(criterion: Any, rows: list[list[float]], tmp_path: Path) -> None:
    subject, run, _ = by_hand(tmp_path, y=LABELS)
    gradients = gather(subject, run, statistics_for([criterion]), 512, seed=0)
    scores = weight_scores(subject.graph, "0.weight", criterion, 0, gradients)
    torch.testing.assert_close(scores, torch.tensor(rows, dtype=torch.float64))


def test_only_the_training_samples_asked_for_are_taken(tmp_path: Path) -> None:
    subject, run, _ = by_hand(tmp_path, y=LABELS)
    one = gather(subject, run, ["magnitude"], 1, seed=0)
    assert one.samples == 1
    found = one.moments["2.weight"].magnitude
    assert found is not None
    assert found.tolist() in ([[10.0, 2.0, 12.0]], [[8.0, 0.0, 6.0]])


def test_without_labels_the_squares_are_the_second_derivative_of_the_distillation_loss(tmp_path: Path) -> None:
    """One sample many times: dy/dv is h = (5, 1, 6) and the loss is (y - y0)² / 2 over the mean square of y0."""
    x = np.tile(np.array([[1, 2]], dtype=np.float32), (1002, 1))
    split = np.array(["train"] * 1000 + ["val", "test"])
    subject, run, _ = by_hand(tmp_path, x=x, split=split)
    gradients = gather(subject, run, ["square"], 1000, seed=0)
    assert gradients.loss == "distill"
    square = gradients.moments["2.weight"].square
    assert square is not None
    curvature = np.array([[25.0, 1.0, 36.0]]) / 9**2
    np.testing.assert_allclose(square.numpy(), curvature, rtol=0.15)
    np.testing.assert_allclose(square.numpy() / square[0, 1].item(), [[25.0, 1.0, 36.0]], rtol=1e-5)


@pytest.mark.parametrize("criterion", GRADIENT_CRITERIA)
def test_without_labels_an_untouched_network_still_tells_its_channels_apart(
    criterion: UnitCriterion, tmp_path: Path
) -> None:
    """The distillation loss itself is at its minimum there: its gradient is zero and ranks nothing."""
    subject = subject_of("resnet18")
    run = run_in(tmp_path, data=dataset_for(subject, tmp_path, 40))
    channels = analyse(subject.graph, subject.example_inputs())
    scoring = Scoring(criterion, normalize="none")
    choices = [(group, scoring) for group in channels.groups]
    scores, gradients = score_groups(subject, run, channels, choices, 8, seed=0)
    assert gradients is not None
    assert gradients.loss == "distill"
    for own in scores:
        assert own.min() >= 0
        assert own.max() > 1.2 * own.min()


@pytest.mark.parametrize("name", ["vit", "lstm", "gru", "bert", "two_towers", "tied_language_model"])
def test_every_parameter_of_any_network_gets_its_gradients(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    run = run_in(tmp_path, data=dataset_for(subject, tmp_path, 20))
    channels = analyse(subject.graph, subject.example_inputs())
    gradients = gather(subject, run, ALL, 2, seed=0, channels=channels)
    assert gradients.moments.keys() == dict(subject.graph.named_parameters(remove_duplicate=False)).keys()
    for group in channels.groups:
        for criterion in GRADIENT_CRITERIA:
            assert unit_scores(channels, group, Scoring(criterion), 0, gradients).any(), (group.id, criterion)


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    subject = subject_of("lstm")
    recurrent = next(module for module in subject.graph.modules() if isinstance(module, nn.LSTM))
    recurrent.dropout = 0.25
    before = {name: value.clone() for name, value in subject.graph.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in subject.graph.named_parameters()}
    run = run_in(tmp_path, data=dataset_for(subject, tmp_path, 20))
    gather(subject, run, ["square"], 2, seed=0)
    assert recurrent.dropout == 0.25
    assert not any(module.training for module in subject.graph.modules())
    assert all(torch.equal(value, before[name]) for name, value in subject.graph.state_dict().items())
    assert {name: parameter.requires_grad for name, parameter in subject.graph.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in subject.graph.parameters())


@pytest.mark.parametrize("labels", [{"y": LABELS}, {}], ids=["labelled", "unlabelled"])
def test_the_same_seed_gives_the_same_gradients(labels: dict[str, Any], tmp_path: Path) -> None:
    def gathered() -> Gradients:
        subject, run, channels = by_hand(tmp_path, **labels)
        return gather(subject, run, ALL, 512, seed=3, channels=channels)

    first, second = gathered().moments["0.weight"], gathered().moments["0.weight"]
    assert first.magnitude is not None
    assert second.magnitude is not None
    assert torch.equal(first.magnitude, second.magnitude)
    np.testing.assert_array_equal(first.joint[0], second.joint[0])


def test_a_sample_whose_pixels_all_lack_a_class_is_left_out(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    subject = lifted(network, (torch.zeros(2, 1, 2, 2),), tmp_path)
    maps = np.random.default_rng(0).integers(0, 3, (8, 2, 2)).astype(np.uint8)
    maps[0] = 255
    np.savez(
        tmp_path / "data.npz",
        x=np.ones((8, 1, 2, 2), np.float32),
        y=maps,
        split=np.array(["train"] * 4 + ["val"] * 2 + ["test"] * 2),
    )
    data = open_dataset(tmp_path / "data.npz", Data(dataset="dat_test", task="segmentation"), subject.inputs, seed=0)
    gradients = gather(subject, run_in(tmp_path, data=data), ["square"], 512, seed=0)
    assert (gradients.loss, gradients.samples) == ("task", 3)


def test_without_data_there_are_no_gradients(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="This criterion needs gradients, and those need data") as raised:
        gather(subject_of("lstm"), run_in(tmp_path), ["square"], 8, seed=0)
    assert (raised.value.code, raised.value.where) == (Code.INVALID_SPEC, "/data")


def test_an_infinite_gradient_is_refused(tmp_path: Path) -> None:
    class Steep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(self.layer(x) * 0.0)

    subject = lifted(Steep(), (torch.ones(2, 2),), tmp_path)
    run = run_in(tmp_path, data=dataset_for(subject, tmp_path, 20))
    with pytest.raises(Failure, match="A gradient is NaN or infinite") as raised:
        gather(subject, run, ["square"], 8, seed=0)
    assert raised.value.code is Code.NAN_LOSS


def test_a_network_whose_loss_reaches_no_parameter_is_refused(tmp_path: Path) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).argmax(1).float()

    subject = lifted(Rounded(), (torch.ones(2, 2),), tmp_path)
    run = run_in(tmp_path, data=dataset_for(subject, tmp_path, 20))
    with pytest.raises(Failure, match="No gradient reaches the network's parameters") as raised:
        gather(subject, run, ["square"], 8, seed=0)
    assert raised.value.code is Code.NOT_TRAINABLE
