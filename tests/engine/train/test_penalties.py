"""Each penalty against its formula, and against what it is for: a cut that takes what was drawn to zero costs less."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.spec import FinetuneStep, PruneStep
from models.spec_regularize import L1, BatchNormGamma, GroupLasso, Growing
from tests.engine.subjects import lifted
from tests.engine.train.test_step import patterns, started
from worker.engine.graph.channels import Channels, analyse
from worker.engine.prune.step import run as prune
from worker.engine.subject import Subject
from worker.engine.train.penalties import GrowingPenalty, penalty_for, units_to_draw
from worker.engine.train.state import copy_weights
from worker.engine.train.step import run

RATE = 0.01


class Chain(nn.Module):
    """conv and bn share their channels with the columns of head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.bn(self.conv(x)).relu().mean((2, 3)))
        return y


@pytest.fixture
def chain(tmp_path: Path) -> Channels:
    torch.manual_seed(0)
    subject = lifted(Chain(), (torch.randn(2, 2, 6, 6),), tmp_path)
    with torch.no_grad():
        subject.graph.get_parameter("bn.weight").copy_(torch.tensor([0.5, -0.001, 1.0, 2.0]))
    return analyse(subject.graph, subject.example_inputs())


def unit(weights: dict[str, Tensor], place: int) -> Tensor:
    """All weights that go with a channel: its kernel, its scale, the column that reads it."""
    row, scale, column = weights["conv.weight"][place], weights["bn.weight"][place], weights["head.weight"][:, place]
    return torch.cat([row.flatten(), scale[None], column])


def gradient_of(chain: Channels, asked: L1 | GroupLasso | BatchNormGamma, value: Any) -> dict[str, Tensor]:
    """What the penalty adds to gradients of one, after a look that it does nothing else. It must be the gradient of
    `value`, a function of the weights, by automatic differentiation."""
    before, penalty = copy_weights(chain.graph), penalty_for(asked, chain, None)
    weights = {name: before[name].clone().requires_grad_() for name, _ in chain.graph.named_parameters()}
    wanted = value(weights)
    assert penalty.value() == pytest.approx(float(wanted.detach()), rel=1e-6)
    gradients = torch.autograd.grad(wanted, list(weights.values()), allow_unused=True)
    for parameter in chain.graph.parameters():
        parameter.grad = torch.ones_like(parameter)
    penalty.add_gradient()
    penalty.shrink(RATE, 0.5)
    assert all(torch.equal(before[name], value) for name, value in copy_weights(chain.graph).items())
    added = {}
    for (name, parameter), gradient in zip(chain.graph.named_parameters(), gradients, strict=True):
        assert parameter.grad is not None
        added[name] = parameter.grad - 1.0
        expected = torch.zeros_like(parameter) if gradient is None else gradient
        assert torch.allclose(added[name], expected, atol=2e-6), name
    return added


def test_l1_is_the_sum_of_what_decays(chain: Channels) -> None:
    added = gradient_of(
        chain,
        L1(penalty="l1", strength=3.0),
        lambda weights: 3.0 * (weights["conv.weight"].abs().sum() + weights["head.weight"].abs().sum()),
    )
    assert set(added["conv.weight"].flatten().tolist()) <= {-3.0, 3.0}
    assert not added["bn.weight"].any()
    with torch.no_grad():
        chain.graph.get_parameter("head.weight")[0].mul_(1e-4)
    count = penalty_for(L1(penalty="l1"), chain, None).count()
    assert 4 <= count.near_zero < count.total == 4 * 2 * 9 + 12


def test_the_group_lasso_is_the_norm_of_all_that_goes_with_a_channel(chain: Channels) -> None:
    asked = GroupLasso(penalty="group_lasso", strength=10.0)
    added = gradient_of(
        chain,
        asked,
        lambda weights: 10.0 * torch.stack([math.sqrt(22) * unit(weights, place).norm() for place in range(4)]).sum(),
    )
    assert all(added[name].any() for name in ("conv.weight", "bn.weight", "head.weight"))
    with torch.no_grad():
        for name in ("conv.weight", "bn.weight"):
            chain.graph.get_parameter(name)[3] = 0.0
        chain.graph.get_parameter("head.weight")[:, 3] = 0.0
    penalty = penalty_for(asked, chain, None)
    assert (penalty.count().near_zero, penalty.count().total) == (1, 4)
    for parameter in chain.graph.parameters():
        parameter.grad = torch.zeros_like(parameter)
    penalty.add_gradient()
    gradients = [parameter.grad for parameter in chain.graph.parameters() if parameter.grad is not None]
    assert all(bool(gradient.isfinite().all()) for gradient in gradients), "at zero the shortest subgradient is zero"


def test_network_slimming_draws_the_scales_alone(chain: Channels) -> None:
    added = gradient_of(
        chain,
        BatchNormGamma(penalty="bn_gamma", strength=2.0),
        lambda weights: 2.0 * weights["bn.weight"].abs().sum(),
    )
    assert added["bn.weight"].tolist() == [2.0, -2.0, 2.0, 2.0]
    count = penalty_for(BatchNormGamma(penalty="bn_gamma"), chain, None).count()
    assert (count.near_zero, count.total) == (1, 4)
    added = gradient_of(
        chain,
        BatchNormGamma(penalty="bn_gamma", strength=2.0, shifts=True),
        lambda weights: 2.0 * (weights["bn.weight"].abs().sum() + weights["bn.bias"].abs().sum()),
    )
    assert not added["conv.bias"].any()


def test_growing_regularisation_decays_the_lowest_units_ever_faster(chain: Channels) -> None:
    with torch.no_grad():
        chain.graph.get_parameter("conv.weight")[2].mul_(0.01)
        chain.graph.get_parameter("bn.weight")[2] = 0.01
        chain.graph.get_parameter("head.weight")[:, 2].mul_(0.01)
    asked = Growing(penalty="growing", fraction=0.25, strength=40.0, rises=4)
    drawn = units_to_draw(asked, chain, 0)
    assert {group: len(units) for group, units in drawn.items()} == {chain.groups[0].id: 1}
    penalty = penalty_for(asked, chain, drawn)
    assert isinstance(penalty, GrowingPenalty)
    assert [penalty.weight_at(done) for done in (0.0, 0.24, 0.25, 0.5, 0.99, 1.0)] == [10, 10, 20, 30, 40, 40]
    before = copy_weights(chain.graph)
    assert penalty.value() == pytest.approx(0.5 * 40.0 * float(unit(before, 2).square().sum()), rel=1e-6)
    penalty.shrink(RATE, 0.5)
    after = copy_weights(chain.graph)
    assert torch.allclose(unit(after, 2), unit(before, 2) / (1.0 + RATE * 30.0), rtol=1e-6)
    assert all(torch.equal(unit(after, place), unit(before, place)) for place in (0, 1, 3))


class Wide(Chain):
    """With more channels than it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.Linear(24, 4)


TRAIN: dict[str, Any] = {"step": "finetune", "epochs": 40, "learning_rate": 2e-2, "batch_size": 32, "loss": "task"}
CUTS: list[tuple[dict[str, Any], str]] = [
    ({"penalty": "group_lasso", "strength": 0.01}, "l2"),
    ({"penalty": "bn_gamma", "strength": 0.03, "shifts": True}, "bn_gamma"),
    ({"penalty": "growing", "fraction": 0.5}, "l2"),
]


@pytest.mark.parametrize(("penalty", "criterion"), CUTS, ids=lambda value: str(value)[:30])
def test_after_sparse_training_the_matching_cut_costs_less(
    tmp_path: Path, penalty: dict[str, Any], criterion: str
) -> None:
    def rise_of_the_loss(regularize: dict[str, Any] | None) -> tuple[float, dict[str, Any]]:
        """By a cut of half of the channels, after training with and without."""
        torch.manual_seed(0)
        subject = lifted(Wide(), (torch.randn(2, 1, 8, 8),), tmp_path)
        step = FinetuneStep.model_validate(TRAIN | {"regularize": regularize, "keep": "last"})
        begun = started(subject, tmp_path, patterns(), step)
        details = run(subject, step, begun)
        before = loss(subject)
        cut = PruneStep.model_validate(
            {"step": "prune", "criterion": criterion, "amount": {"channels": 0.5}, "round_to": 1}
        )
        prune(subject, cut, begun)
        return loss(subject) - before, details

    def loss(subject: Subject) -> float:
        arrays = patterns()
        with torch.no_grad():
            outputs = subject.graph(torch.from_numpy(arrays["x"]))
        return float(nn.functional.cross_entropy(outputs, torch.from_numpy(arrays["y"])))

    plain, _ = rise_of_the_loss(None)
    drawn, details = rise_of_the_loss(penalty)
    assert drawn < 0.5 * plain
    said = details["regularize"]
    assert said["penalty"] == penalty["penalty"]
    assert said["near_zero_after"] > said["near_zero_before"]
    assert said["value_after"] < said["value_before"]
    assert (details["keep"], details["best_epoch"]) == ("last", 40)
