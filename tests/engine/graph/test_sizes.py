"""Sizes as polynomials, against the count of labels and against networks that were really cut."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from models.sizes import evaluate
from tests.engine.subjects import lifted, subject_of
from tests.networks import NETWORKS
from worker.engine.graph.channels import Channels, analyse
from worker.engine.graph.cost import macs, macs_after, parameters, parameters_after
from worker.engine.graph.cut import Cut
from worker.engine.graph.sizes import Polynomial, sizes_of_network


def some_of(channels: Channels, seed: int) -> list[int]:
    chosen = random.Random(seed)
    return [u for group in channels.groups for u in chosen.sample(group.units, chosen.randrange(len(group.units)))]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_polynomials_are_the_sizes_of_any_cut(name: str) -> None:
    subject, (_, inputs) = subject_of(name), NETWORKS[name]()
    channels = analyse(subject.graph, inputs)
    sizes = sizes_of_network(channels)
    least = sizes.least or sizes.most
    whole = [len(group.units) for group in channels.groups]
    assert evaluate(sizes.most.parameters, whole) >= parameters(subject.graph)
    for seed in range(4):
        removed = some_of(channels, seed)
        kept = [len(set(group.units) - set(removed)) for group in channels.groups]
        plan = Cut(channels, removed)
        found = (parameters_after(plan), macs_after(plan))
        lower = (evaluate(least.parameters, kept), evaluate(least.macs, kept))
        upper = (evaluate(sizes.most.parameters, kept), evaluate(sizes.most.macs, kept))
        assert lower == found == upper
    assert sizes.exact


class Uneven(nn.Module):
    """Half of the units feed the second layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        y: torch.Tensor = self.second(torch.cat([x, x[:, :4]], 1))
        return y


def test_units_of_several_sizes_give_a_range(tmp_path: Path) -> None:
    inputs = (torch.zeros(2, 4),)
    channels = analyse(lifted(Uneven(), inputs, tmp_path).graph, inputs)
    sizes = sizes_of_network(channels)
    assert sizes.least is not None
    (group,) = channels.groups
    left = {
        parameters_after(Cut(channels, removed)) for removed in (group.units[:2], group.units[-2:], group.units[3:5])
    }
    assert min(left) >= evaluate(sizes.least.parameters, [6])
    assert max(left) <= evaluate(sizes.most.parameters, [6])
    assert len(left) == 3


def test_a_polynomial_counts_like_the_number_it_stands_for() -> None:
    first, second = Polynomial({(): 3, (0,): 2}), Polynomial({(1,): 5})
    product = 2 * (first * second + 1)
    assert product.terms == {(): 2, (1,): 30, (0, 1): 20}
    assert evaluate([(c, g) for g, c in product.terms.items()], [7, 11]) == 2 * ((3 + 2 * 7) * 5 * 11 + 1)


def test_bytes_are_those_of_parameters_and_buffers(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    inputs = (torch.zeros(2, 4),)
    channels = analyse(lifted(module, inputs, tmp_path).graph, inputs)
    (group,) = channels.groups
    sizes = sizes_of_network(channels)
    for kept in (6, 3):
        floats = (4 + 1) * kept + 4 * kept + (kept + 1) * 2
        counters = sum(b.element_size() * b.numel() for b in channels.graph.buffers() if not b.is_floating_point())
        assert evaluate(sizes.most.bytes, [kept]) == 4 * floats + counters
    assert evaluate(sizes.most.macs, [3]) == sum(macs(channels.graph, inputs).values()) // 2
    assert len(group.units) == 6
