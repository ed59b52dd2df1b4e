"""What is different for some layers: amounts of their own, criteria, bounds, and which choice counts."""

# mypy: disable-error-code="index, operator"
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tests.engine.prune.pruning import chain, prune, widths_of
from tests.engine.subjects import lifted, subject_of
from worker.engine.graph.cost import macs


def test_amounts_of_layers_fix_their_counts_and_the_rest_makes_up_for_it(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    before = sum(macs(subject.graph, subject.example_inputs()).values())
    details = prune(
        subject,
        tmp_path,
        amount={"macs": 0.5},
        round_to=1,
        layers=[
            {"match": "layer1.0.conv1", "amount": {"channels": 0.25}},
            {"match": "layer3.0.conv1", "amount": {"target": {"channels": 7}}},
        ],
    )
    widths = {name: module.out_channels for name, module in subject.graph.named_modules() if hasattr(module, "stride")}
    assert widths["layer1.0.conv1"] == 12
    assert widths["layer3.0.conv1"] == 7
    after = sum(macs(subject.graph, subject.example_inputs()).values())
    assert abs(1 - after / before - 0.5) <= 0.02
    rows = {row["id"]: row for row in details["groups"]}
    assert (rows["layer1.0.conv1"]["choice"], rows["layer3.0.conv1"]["choice"], rows["conv1"]["choice"]) == (0, 1, None)


def test_without_an_amount_of_the_step_only_named_layers_shrink(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8, 8, 8)
    details = prune(subject, tmp_path, layers=[{"match": "2", "amount": {"channels": 0.5}}], round_to=1)
    assert widths_of(subject) == [8, 4, 8]
    assert [row["id"] for row in details["groups"]] == ["2"]
    assert (details["quantity"], details["asked"], details["reached"]) == ("channels", None, 0.5)


def test_layers_have_thresholds_and_percentiles_of_their_own(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8, 8, 8)
    prune(
        subject,
        tmp_path,
        criterion="l1",
        round_to=1,
        layers=[
            {"match": "0", "amount": {"percentile": 25}},
            {"match": "2", "amount": {"threshold": 2.5}, "normalize": "mean"},
            {"match": "4", "amount": {"threshold": 1e9}, "round_to": 4},
        ],
    )
    assert widths_of(subject) == [6, 1, 4], "no score is 2.5 times the mean, so the second keeps its best unit"


def test_two_layers_are_ranked_by_different_criteria(tmp_path: Path) -> None:
    """By l1 the first unit of each layer is the least, by l2 the second."""
    network = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
        network[1].weight.copy_(torch.eye(2))
        network[2].weight.fill_(1.0)
    expected = {"l1": [3.0, 0.0, 0.0, 0.0], "l2": [1.0, 1.0, 1.0, 1.0]}
    for own, other in (("l1", "l2"), ("l2", "l1")):
        subject = lifted(network, (torch.zeros(2, 4),), tmp_path)
        details = prune(
            subject,
            tmp_path,
            amount={"channels": 0.5},
            scope="layer",
            criterion=other,
            round_to=1,
            layers=[{"match": "0", "criterion": own}],
        )
        gone = torch.tensor(expected[own])
        left = subject.graph.get_submodule("0").weight
        assert left.shape == (1, 4)
        assert not torch.equal(left[0], gone), own
        assert [row["criterion"] for row in details["groups"]] == [own, other]


def test_bounds_of_a_layer_replace_those_of_the_step(tmp_path: Path) -> None:
    subject = chain(tmp_path, 16, 16, 16)
    prune(
        subject,
        tmp_path,
        amount={"channels": 0.95},
        round_to=1,
        minimum=2,
        layers=[{"match": "0", "minimum": 10}, {"match": "2", "maximum_fraction": 0.25}],
    )
    assert widths_of(subject) == [10, 12, 2]


def test_the_first_choice_that_matches_a_layer_counts(tmp_path: Path) -> None:
    subject = chain(tmp_path, 8, 8)
    choices = [{"match": "2", "amount": {"channels": 0.25}}, {"match": "*", "amount": {"channels": 0.5}}]
    prune(subject, tmp_path, layers=choices, round_to=1)
    assert widths_of(subject) == [4, 6]


def test_a_layer_that_is_skipped_keeps_those_that_shrink_with_it_whatever_they_ask(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    choices = [{"match": "conv1", "amount": {"channels": 0.5}}, {"match": "layer1.0.conv2", "skip": True}]
    prune(subject, tmp_path, amount={"channels": 0.5}, round_to=1, layers=choices)
    assert subject.graph.get_submodule("conv1").weight.shape[0] == 16
