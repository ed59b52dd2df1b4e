"""Layers that take 8 bits until a floor holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.foretell import foretell
from models.spec import Int4Step
from models.spec_types import Floor
from tests.engine.subjects import dataset_for, lifted, run_in
from worker.engine.graph.describe import describe_network
from worker.engine.lowbit.step import run as quantize
from worker.engine.subject import Subject
from worker.engine.train.step import run as finetune


class Delicate(nn.Module):
    """Two layers whose weights 2 bits hold exactly, and one of which `largest` leaves nothing in 2 bits."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.first, self.delicate, self.last = nn.Linear(8, 32), nn.Linear(33, 32), nn.Linear(32, 4)
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.copy_(layer.weight.sign() * 0.25)
            self.delicate.weight[:, 32] = largest

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        scores: Tensor = self.last(torch.relu(self.delicate(torch.cat([y, 0 * y[:, :1]], 1))))
        return scores


def delicate(folder: Path, largest: float) -> Subject:
    torch.manual_seed(0)
    return lifted(Delicate(largest), (torch.randn(2, 8),), folder)


def step(drop: float, **fields: int) -> Int4Step:
    return Int4Step(
        step="quantize",
        scheme="int4",
        bits=2,
        group_size=None,
        range="minmax",
        floor=Floor(max_metric_drop=drop),
        **fields,
    )


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_layer_that_does_harm_has_8_bits_and_no_other(epochs: int, tmp_path: Path) -> None:
    subject, asked = delicate(tmp_path, largest=1.0), step(0.05, epochs=epochs)
    foretold = foretell([asked], describe_network(subject, "pt2"))[0].quantities["bytes"]
    begun = run_in(tmp_path, asked, data=dataset_for(subject, tmp_path, 400))
    begun.train = finetune
    details = quantize(subject, asked, begun)
    floor = details["floor"]
    assert (floor["metric"], floor["float"], floor["in_8_bits"]) == ("agreement", 1.0, ["delicate"])
    assert floor["as_asked"] < 0.95 <= floor["reached"]
    assert next(iter(floor["sqnr_db_alone"])) == "delicate"
    assert {name: each.levels for name, each in subject.coded.items()} == {
        "first.weight": 4, "delicate.weight": 256, "last.weight": 4,
    }  # fmt: skip
    assert details["stored_in_few_bits"]["delicate"]["bits"] == 8
    assert foretold.least < details["bytes"] < foretold.most


def test_where_the_floor_holds_nothing_has_more_bits(tmp_path: Path) -> None:
    subject, asked = delicate(tmp_path, largest=1.0), step(1.0)
    details = quantize(subject, asked, run_in(tmp_path, asked, data=dataset_for(subject, tmp_path, 400)))
    assert (details["floor"]["in_8_bits"], details["floor"]["sqnr_db_alone"]) == ([], None)
    assert {each.levels for each in subject.coded.values()} == {4}


def test_a_floor_out_of_reach_is_told(tmp_path: Path) -> None:
    subject, asked = delicate(tmp_path, largest=4e3), step(0.05)
    begun = run_in(tmp_path, asked, data=dataset_for(subject, tmp_path, 400))
    details = quantize(subject, asked, begun)
    assert "floor_not_reached" in str(begun.warnings)
    assert details["floor"]["reached"] < 0.95
    assert {each.levels for each in subject.coded.values()} == {256}
