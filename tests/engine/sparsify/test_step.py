"""The sparsify step on lifted networks: what it sets to zero, what it says, what it refuses, and its replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec import PruneStep, SparsifyStep
from tests.engine.subjects import lifted, run_in, subject_of
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.prune.step import replay as replay_prune
from worker.engine.prune.step import run as prune
from worker.engine.sparsify.matrices import sparse_weights
from worker.engine.sparsify.step import replay, run
from worker.engine.subject import Subject


class Two(nn.Module):
    """Two layers whose weights are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(2, 2)
        self.first.weight.data = torch.tensor([[1.0, -8.0, 3.0, -2.0], [0.5, 7.0, -0.6, 0.4]])
        self.second.weight.data = torch.tensor([[10.0, -20.0], [-5.0, 30.0]])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def two(folder: Path) -> Subject:
    return lifted(Two(), (torch.randn(2, 4),), folder)


def step(**fields: Any) -> SparsifyStep:
    return SparsifyStep.model_validate({"step": "sparsify", **fields})


def sparsified(subject: Subject, folder: Path, **fields: Any) -> dict[str, Any]:
    return run(subject, step(**fields), run_in(folder))


def weights(subject: Subject) -> list[list[list[float]]]:
    return [subject.graph.get_parameter(f"{name}.weight").tolist() for name in ("first", "second")]


def test_one_ranking_takes_the_smallest_magnitudes_of_the_network(tmp_path: Path) -> None:
    subject = two(tmp_path)
    details = sparsified(subject, tmp_path, amount=0.5)
    assert weights(subject) == [[[0, -8, 0, 0], [0, 7, 0, 0]], [[10, -20], [-5, 30]]]
    assert (details["weights"], details["zeros"], details["reached"]) == (12, 6, 0.5)
    assert [row["zeros"] for row in details["layers"]] == [6, 0]


def test_scores_of_two_criteria_are_ranked_by_their_means(tmp_path: Path) -> None:
    """Shares are below one and magnitudes here above five: raw, the second layer would lose nothing."""
    subject = two(tmp_path)
    sparsified(subject, tmp_path, amount=0.5, layers=[{"match": "first", "criterion": "lamp"}])
    assert weights(subject) == [[[0, -8, 3, 0], [0, 7, 0, 0]], [[10, -20], [0, 30]]]


def test_by_layer_every_layer_loses_the_same_fraction(tmp_path: Path) -> None:
    subject = two(tmp_path)
    sparsified(subject, tmp_path, amount=0.5, scope="layer")
    assert weights(subject) == [[[0, -8, 3, -2], [0, 7, 0, 0]], [[0, -20], [0, 30]]]


def test_two_of_four_along_the_inputs(tmp_path: Path) -> None:
    subject = two(tmp_path)
    details = sparsified(subject, tmp_path, pattern={"n_of_m": [2, 4]})
    assert weights(subject) == [[[0, -8, 3, 0], [0, 7, pytest.approx(-0.6), 0]], [[10, -20], [-5, 30]]]
    assert details["left_dense"] == {"second.weight": "2 inputs are no multiple of 4"}


def test_blocks_go_whole(tmp_path: Path) -> None:
    subject = two(tmp_path)
    sparsified(subject, tmp_path, pattern={"block": [2, 1]}, amount=0.5)
    # Means of columns: 0.75, 7.5, 1.8, 1.2 and 7.5, 25: three of six go.
    assert weights(subject) == [[[0, -8, 0, 0], [0, 7, 0, 0]], [[10, -20], [-5, 30]]]


def test_a_threshold_takes_what_is_smaller_and_leaves_every_layer_one(tmp_path: Path) -> None:
    subject = two(tmp_path)
    sparsified(subject, tmp_path, threshold=2.5)
    assert weights(subject) == [[[0, -8, 3, 0], [0, 7, 0, 0]], [[10, -20], [-5, 30]]]
    subject = two(tmp_path)
    sparsified(subject, tmp_path, threshold=1000.0)
    assert weights(subject) == [[[0, -8, 0, 0], [0, 0, 0, 0]], [[0, 0], [0, 30]]]


def test_layers_may_have_their_own_amount_or_none(tmp_path: Path) -> None:
    subject = two(tmp_path)
    details = sparsified(subject, tmp_path, amount=0.25, layers=[{"match": "second", "amount": 0.75}])
    assert weights(subject)[1] == [[0, 0], [0, 30]]
    assert [row["zeros"] for row in details["layers"]] == [2, 3]
    subject = two(tmp_path)
    details = sparsified(subject, tmp_path, layers=[{"match": "second", "threshold": 15}])
    assert details["left_dense"] == {"first.weight": "no amount is asked of it"}
    assert weights(subject)[1] == [[0, -20], [0, 30]]
    subject = two(tmp_path)
    details = sparsified(subject, tmp_path, amount=0.5, layers=[{"match": "f*", "skip": True}])
    assert details["left_dense"] == {"first.weight": "skipped by `layers`"}
    assert weights(subject)[1] == [[0, -20], [0, 30]]


def test_random_depends_on_the_seed_alone(tmp_path: Path) -> None:
    masks = []
    for name in ("resnet18", "resnet18"):
        subject = subject_of(name)
        sparsified(subject, tmp_path, amount=0.5, criterion="random")
        masks.append(subject.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    share = sum(int(mask.sum()) for mask in masks[0].values()) / sum(mask.numel() for mask in masks[0].values())
    assert share == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "unet", "lstm", "vit"])
def test_every_group_of_four_has_two_zeros(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    details = sparsified(subject, tmp_path, pattern={"n_of_m": [2, 4]})
    covered = {row["parameter"] for row in details["layers"]}
    assert covered
    for weight in sparse_weights(subject.graph):
        zeros = (weight.matrices(weight.tensor) == 0).float()
        if weight.parameter in covered:
            groups = zeros.reshape(*zeros.shape[:2], -1, 4).sum(-1)
            assert int(groups.min()) == int(groups.max()) == 2, weight.parameter
        else:
            assert weight.neighbours % 4, weight.parameter
            assert int(zeros.sum()) == 0


def test_a_second_step_goes_on_from_the_first(tmp_path: Path) -> None:
    subject = two(tmp_path)
    sparsified(subject, tmp_path, amount=0.25, criterion="random")
    first = {name: mask.clone() for name, mask in subject.masks.items()}
    details = sparsified(subject, tmp_path, amount=0.75)
    assert details["zeros"] == 9
    assert all(not bool((subject.masks[name] & ~mask).any()) for name, mask in first.items())
    with pytest.raises(Failure) as caught:
        sparsified(subject, tmp_path, amount=0.5)
    assert caught.value.code == Code.NOTHING_TO_PRUNE
    assert "75.0% are zero already" in caught.value.message


def test_what_cannot_be_reached_is_said(tmp_path: Path) -> None:
    subject = two(tmp_path)
    begun = run_in(tmp_path)
    run(subject, step(amount=0.95), begun)
    (warning,) = begun.warnings
    assert warning.code == "amount_not_reached"
    assert "reached 83.3%" in warning.message


def test_what_is_no_weight_of_a_layer_is_left_dense_with_the_reason(tmp_path: Path) -> None:
    subject = subject_of("tied_language_model")
    begun = run_in(tmp_path)
    details = run(subject, step(amount=0.5, layers=[{"match": "[!d]*", "skip": True}]), begun)
    assert [row["name"] for row in details["layers"]] == ["down"]
    assert details["left_dense"]["position"] == "is not the weight of a layer"
    assert details["left_dense"]["head.weight"] == "skipped by `layers`"
    (warning,) = begun.warnings
    assert warning.code == "mostly_dense"
    assert f"Only {48 * 24 / details['parameters']:.0%} of the parameters" in warning.message
    assert "embedding.weight" in sparsified(subject_of("lstm"), tmp_path, amount=0.5)["left_dense"]


def test_a_network_without_a_layer_that_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        sparsified(two(tmp_path), tmp_path, pattern={"n_of_m": [1, 3]})
    assert caught.value.code == Code.NOTHING_TO_PRUNE
    assert "first.weight: 4 inputs are no multiple of 3" in caught.value.message


def test_a_replay_and_a_checkpoint_bring_the_masks_back(tmp_path: Path) -> None:
    subject = subject_of("lstm")
    sparsified(subject, tmp_path, amount=0.6)
    again = subject_of("lstm")
    replay(again, subject.records[0])
    assert all(torch.equal(again.masks[name], mask) for name, mask in subject.masks.items())
    save_checkpoint(subject, [], tmp_path / "checkpoint.safetensors")
    restored = subject_of("lstm")
    restore_checkpoint(restored, tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(restored.masks[name], mask) for name, mask in subject.masks.items())
    assert all(torch.equal(a, b) for a, b in zip(restored.graph.parameters(), subject.graph.parameters(), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "gru", "bert"])
def test_masks_follow_a_cut(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    sparsified(subject, tmp_path, amount=0.7, criterion="random")
    prune(
        subject,
        PruneStep.model_validate({"step": "prune", "amount": {"channels": 0.4}, "round_to": 2}),
        run_in(tmp_path),
    )
    shrunk = 0
    for parameter, mask in subject.masks.items():
        weight = subject.graph.get_parameter(parameter)
        assert mask.shape == weight.shape
        assert torch.equal(weight != 0, mask), "random weights are never zero by themselves"
        shrunk += weight.shape != subject.original.get_parameter(parameter).shape
    assert shrunk
    again = subject_of(name)
    replay(again, subject.records[0])
    replay_prune(again, subject.records[1])
    assert all(torch.equal(again.masks[parameter], mask) for parameter, mask in subject.masks.items())
