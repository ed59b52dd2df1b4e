"""The prune step on whole networks: amounts, scopes, skips, refusals, replay."""

# mypy: disable-error-code="index, no-any-return"
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.events import WarningEvent
from models.spec import Amount, PruneStep
from tests.engine.graph.test_traps import CASES
from tests.engine.subjects import lifted, run_in, subject_of
from tests.networks import NETWORKS, randomised
from worker.engine.graph.cost import macs, parameters
from worker.engine.prune.step import replay, run
from worker.engine.subject import Subject


def prune(subject: Subject, folder: Path, **settings: Any) -> dict[str, Any]:
    step = PruneStep.model_validate({"step": "prune", **settings})
    return run(subject, step, run_in(folder, step))


def measures(subject: Subject) -> dict[str, int]:
    return {
        "parameters": parameters(subject.graph),
        "macs": sum(macs(subject.graph, subject.example_inputs()).values()),
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "vit", "bert"])
@pytest.mark.parametrize("quantity", ["parameters", "macs"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_amount_is_reached_within_two_percent(name: str, quantity: str, scope: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    before = measures(subject)
    details = prune(subject, tmp_path, amount={quantity: 0.4}, scope=scope, round_to=1)
    gone = 1 - measures(subject)[quantity] / before[quantity]
    assert gone == pytest.approx(0.4, abs=0.02)
    assert details["reached"] == pytest.approx(gone, abs=1e-6)
    assert details["why_missed"] is None
    assert details["mask_check"] <= 1e-5


def test_channels_are_counted_over_the_groups_that_may_shrink(tmp_path: Path) -> None:
    details = prune(subject_of("resnet18"), tmp_path, amount={"channels": 0.25}, scope="global", round_to=1)
    before = sum(group["units_before"] for group in details["groups"])
    after = sum(group["units_after"] for group in details["groups"])
    assert 1 - after / before == pytest.approx(details["reached"]) == pytest.approx(0.25, abs=0.02)


def test_per_layer_takes_the_same_fraction_of_every_group(tmp_path: Path) -> None:
    details = prune(subject_of("resnet50"), tmp_path, amount={"channels": 0.5}, scope="layer", round_to=1)
    assert {group["units_after"] * 2 == group["units_before"] for group in details["groups"]} == {True}


def test_the_smallest_weights_go_first(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        for unit in range(8):
            network[0].weight[unit].fill_(unit + 1.0)
            network[2].weight[:, unit].fill_(unit + 1.0)
    subject = lifted(network, (torch.zeros(2, 4),), tmp_path)
    prune(subject, tmp_path, amount={"channels": 0.5}, criterion="l1", round_to=1)
    assert subject.graph.get_submodule("0").weight[:, 0].tolist() == [5.0, 6.0, 7.0, 8.0]
    assert subject.graph.get_submodule("2").weight[0].tolist() == [5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize("name", ["resnet18", "densenet", "vit", "lstm"])
def test_what_stays_is_a_multiple_of_round_to(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    prune(subject, tmp_path, amount={"macs": 0.5}, round_to=8)
    for path, layer in subject.graph.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)):
            assert layer.weight is not None
            assert layer.weight.shape[0] % 8 == 0, path
        if isinstance(layer, nn.LSTM):
            assert layer.hidden_size % 8 == 0


def test_heads_are_counted_in_channels_whatever_tables_hang_on_them(tmp_path: Path) -> None:
    """A head of 8 channels may go alone under `round_to` 8, although a bias table has one column a head."""
    make, x, _ = CASES["relative_position_table"]
    subject = lifted(randomised(make()), (x,), tmp_path)
    details = prune(subject, tmp_path, amount={"channels": 0.25}, round_to=8)
    assert [(group["units_before"], group["units_after"]) for group in details["groups"]] == [(4, 3)]


def test_every_group_keeps_at_least_one_step(tmp_path: Path) -> None:
    details = prune(subject_of("resnet18"), tmp_path, amount={"macs": 0.99}, round_to=8)
    assert {group["units_after"] for group in details["groups"]} == {8}
    single = prune(subject_of("resnet18"), tmp_path, amount={"parameters": 0.999}, round_to=1)
    assert {group["units_after"] for group in single["groups"]} == {1}


def test_a_miss_is_reported_with_its_reason(tmp_path: Path) -> None:
    step = PruneStep(step="prune", amount=Amount(macs=0.99), round_to=8)
    running = run_in(tmp_path, step)
    events: list[object] = []
    running.emit = events.append
    details = run(subject_of("resnet18"), step, running)
    assert "at its smallest" in details["why_missed"]
    (warning,) = (event.notice for event in events if isinstance(event, WarningEvent))
    assert warning.code == "amount_not_reached"
    assert warning.message.startswith("Asked to remove 99.0% of the macs, removed ")


def test_a_skipped_layer_keeps_its_channels_and_those_tied_to_them(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    details = prune(subject, tmp_path, amount={"channels": 0.5}, round_to=1, layers=[{"match": "conv1", "skip": True}])
    shapes = {name: tuple(parameter.shape) for name, parameter in subject.graph.named_parameters()}
    assert shapes["conv1.weight"] == (16, 3, 3, 3)
    assert shapes["layer1.0.conv2.weight"][0] == 16
    assert shapes["layer1.0.conv1.weight"][0] < 16
    assert "conv1" not in {group["id"] for group in details["groups"]}


def test_globs_match_whole_names_and_case(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    prune(subject, tmp_path, amount={"channels": 0.5}, round_to=1, layers=[{"match": "layer?.*.conv1", "skip": True}])
    shapes = {name: tuple(parameter.shape) for name, parameter in subject.graph.named_parameters()}
    assert [shapes[f"layer{stage}.0.conv1.weight"][0] for stage in (1, 2, 3)] == [16, 32, 48]
    assert shapes["conv1.weight"][0] < 16


def test_a_glob_that_matches_nothing_is_refused_with_the_nearest_names(tmp_path: Path) -> None:
    with pytest.raises(
        Failure, match=r"`layer1.0.convl` matches no layer. The nearest names are layer1.0.conv"
    ) as raised:
        prune(
            subject_of("resnet18"),
            tmp_path,
            amount={"channels": 0.5},
            layers=[{"match": "layer1.0.convl", "skip": True}],
        )
    assert raised.value.code is Code.NO_LAYER_MATCHES
    assert raised.value.where == "layer1.0.convl"


def test_skipping_everything_leaves_nothing_to_prune(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="Every group of channels has a layer that `layers` skips") as raised:
        prune(subject_of("resnet18"), tmp_path, amount={"channels": 0.5}, layers=[{"match": "*", "skip": True}])
    assert raised.value.code is Code.NOTHING_TO_PRUNE


def test_a_network_without_removable_channels_is_refused_with_the_reasons(tmp_path: Path) -> None:
    subject = lifted(nn.Sequential(nn.Linear(4, 3)), (torch.zeros(2, 4),), tmp_path)
    with pytest.raises(Failure, match=r"No channel .* can be removed: 0 feeds the output of the network") as raised:
        prune(subject, tmp_path, amount={"channels": 0.5})
    assert raised.value.code is Code.NOTHING_TO_PRUNE


def test_groups_smaller_than_round_to_are_refused_with_the_remedy(tmp_path: Path) -> None:
    subject = lifted(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), (torch.zeros(2, 4),), tmp_path)
    with pytest.raises(Failure, match=r"has 6 units\. Lower `round_to`") as raised:
        prune(subject, tmp_path, amount={"channels": 0.5})
    assert raised.value.code is Code.NOTHING_TO_PRUNE


def test_an_amount_below_one_step_is_refused(tmp_path: Path) -> None:
    subject = lifted(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 3)), (torch.zeros(2, 4),), tmp_path)
    with pytest.raises(Failure, match="less than the smallest step of 8 channels"):
        prune(subject, tmp_path, amount={"channels": 0.1})


@pytest.mark.parametrize("name", NETWORKS)
def test_replaying_the_records_gives_the_identical_network(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    again = Subject.of(copy.deepcopy(subject.graph), subject.inputs, subject.outputs)
    prune(subject, tmp_path, amount={"macs": 0.3}, round_to=1)
    prune(subject, tmp_path, amount={"channels": 0.3}, criterion="random", scope="layer", round_to=1)
    assert [record.step for record in subject.records] == ["prune", "prune"]
    for record in subject.records:
        replay(again, record)
    assert again.graph.code == subject.graph.code
    expected = subject.graph.state_dict()
    assert again.graph.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.graph.state_dict().items())
    inputs = subject.example_inputs(3)
    assert str(again.graph(*inputs)) == str(subject.graph(*inputs))


def test_the_original_stays_whole(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    before = copy.deepcopy(subject.original.state_dict())
    prune(subject, tmp_path, amount={"macs": 0.5})
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.original.state_dict().items())


def test_a_cut_that_cannot_be_proved_fails_and_names_its_group(tmp_path: Path) -> None:
    """The sine of a huge number is noise even in double precision."""

    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steady, self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 40), nn.Linear(40, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.steady(x) + torch.sin(1e18 * self.b(torch.tanh(self.a(x))))

    torch.manual_seed(0)
    subject = lifted(Noise(), (torch.zeros(2, 6),), tmp_path)
    with pytest.raises(Failure, match="without the channels of a is not the one") as raised:
        prune(subject, tmp_path, amount={"channels": 0.5})
    assert raised.value.code is Code.VERIFICATION_FAILED
    assert raised.value.where == "a"
