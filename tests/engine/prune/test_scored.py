"""The criteria in the prune step, on a small ResNet trained on real digits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploy.demo_network import MEAN, STD, Arrays, SmallResNet, accuracy, digits, part
from models.criteria import CRITERIA, UnitCriterion, needs_gradients
from models.errors import Code, Failure
from models.spec import Data, PruneStep, Spec, Transform
from tests.engine.subjects import lifted, run_in
from tests.networks import export_pt2
from worker.engine.data.dataset import open_dataset
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.prune.step import replay, run
from worker.engine.run import Run
from worker.engine.subject import Subject

EPOCHS = 4
FEW: dict[str, Any] = {"amount": {"channels": 0.1}, "scope": "layer", "round_to": 1, "samples": 128}
SEEDS = range(5)


@cache
def numbers() -> Arrays:
    return digits()


def fitted() -> nn.Module:
    """About 97 of 100 digits right; no outside order or number of threads enters."""
    torch.manual_seed(0)
    network = SmallResNet(16)
    x, y = part(numbers(), "train")
    optimizer = torch.optim.AdamW(network.parameters(), lr=6e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=EPOCHS * (len(x) // 64))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x))[: len(x) // 64 * 64].view(-1, 64):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(x[chosen]), y[chosen]))
            optimizer.step()
            schedule.step()
    return network.eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the network and the digits."""
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    export_pt2(fitted(), (torch.zeros(2, 1, 28, 28),), folder / "network.pt2")
    np.savez(folder / "digits.npz", **numbers())  # type: ignore[arg-type]
    yield folder
    torch.set_num_threads(threads)


def running(trained: Path, subject: Subject, step: PruneStep, seed: int = 0) -> Run:
    data = Data(dataset="dat_test", task="classification", transform=Transform(mean=[MEAN], std=[STD]))
    opened = open_dataset(trained / "digits.npz", data, subject.inputs, seed=0)
    made = run_in(trained, step, data=opened)
    made.spec = Spec(model="net_test", steps=[step], data=data, seed=seed)
    return made


def pruned(trained: Path, seed: int = 0, **settings: Any) -> tuple[Subject, dict[str, Any]]:
    subject = lift(read_network(trained / "network.pt2"))
    step = PruneStep.model_validate({"step": "prune", **settings})
    return subject, run(subject, step, running(trained, subject, step, seed))


def right(trained: Path, seed: int = 0, **settings: Any) -> float:
    return accuracy(pruned(trained, seed, **settings)[0].graph, numbers(), "val")


@pytest.fixture(scope="module")
def by_chance(trained: Path) -> float:
    """What is right after random channels went, on average."""
    return mean(right(trained, seed, criterion="random", **FEW) for seed in SEEDS)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_every_criterion_beats_random_channels(criterion: UnitCriterion, trained: Path, by_chance: float) -> None:
    assert right(trained, criterion=criterion, **FEW) > by_chance + 0.1


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if needs_gradients(name)])
def test_gradients_without_labels_beat_random_channels(
    criterion: UnitCriterion, trained: Path, by_chance: float
) -> None:
    assert right(trained, criterion=criterion, loss="distill", **FEW) > by_chance + 0.1


@pytest.mark.parametrize("loss", ["task", "distill"])
def test_the_report_says_what_was_differentiated(loss: str, trained: Path) -> None:
    _, details = pruned(trained, criterion="taylor", loss=loss, **FEW | {"samples": 20})
    assert details["gradients"] == {"loss": loss, "samples": 20}
    _, details = pruned(trained, criterion="l2", **FEW)
    assert details["gradients"] is None


@pytest.mark.parametrize("criterion", ["fisher", "bn_gamma", "fpgm"])
def test_the_same_seed_cuts_the_same_channels_and_the_record_repeats_it(
    criterion: UnitCriterion, trained: Path
) -> None:
    first, _ = pruned(trained, seed=5, criterion=criterion, **FEW)
    second, _ = pruned(trained, seed=5, criterion=criterion, **FEW)
    again = Subject.of(copy.deepcopy(first.original), first.inputs, first.outputs)
    for record in first.records:
        replay(again, record)
    expected = first.graph.state_dict()
    for other in (second, again):
        assert other.graph.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in other.graph.state_dict().items())


def partly_normalised(folder: Path) -> Subject:
    network = nn.Sequential(
        nn.Conv2d(1, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 2, 1)
    )
    with torch.no_grad():
        network[1].weight.copy_(torch.arange(16.0))  # type: ignore[operator]
    return lifted(network, (torch.zeros(2, 1, 4, 4),), folder)


def test_one_ranking_by_bn_gamma_leaves_groups_without_batch_norm_alone(tmp_path: Path) -> None:
    subject = partly_normalised(tmp_path)
    step = PruneStep.model_validate(
        {"step": "prune", "criterion": "bn_gamma", "amount": {"channels": 0.25}, "round_to": 1}
    )
    details = run(subject, step, run_in(tmp_path, step))
    assert details["left_alone"] == [{"id": "3", "reason": "has no BatchNorm with a scale, which `bn_gamma` ranks by"}]
    assert subject.graph.get_parameter("1.weight").tolist() == list(range(4, 16))
    assert subject.graph.get_parameter("3.weight").shape == (24, 12, 1, 1)


def test_the_same_fraction_of_every_group_is_refused_where_one_has_no_batch_norm(tmp_path: Path) -> None:
    step = PruneStep.model_validate(
        {"step": "prune", "criterion": "bn_gamma", "amount": {"channels": 0.25}, "scope": "layer"}
    )
    with pytest.raises(Failure, match=r"cannot be ranked: 3 has no BatchNorm .* skip their layers") as raised:
        run(partly_normalised(tmp_path), step, run_in(tmp_path, step))
    assert raised.value.code is Code.NOTHING_TO_PRUNE


def test_a_network_without_batch_norm_has_nothing_for_bn_gamma(tmp_path: Path) -> None:
    subject = lifted(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 3)), (torch.zeros(2, 4),), tmp_path)
    step = PruneStep.model_validate({"step": "prune", "criterion": "bn_gamma", "amount": {"channels": 0.5}})
    with pytest.raises(Failure, match=r"0 has no BatchNorm .* use another criterion, such as \"l2\"\."):
        run(subject, step, run_in(tmp_path, step))
