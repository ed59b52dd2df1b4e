"""Layers that stay in floating point until a floor holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from models.spec import QatStep, QuantizeStep
from models.spec_types import Floor
from tests.engine.subjects import dataset_for, lifted, run_in
from worker.engine.measure.compare import outputs_of
from worker.engine.quantize.qat.step import run as train_in_8_bits
from worker.engine.quantize.step import replay, run
from worker.engine.subject import Subject
from worker.engine.train.step import run as finetune


class Delicate(nn.Module):
    """One layer whose input has an outlier, which leaves its other channels no levels; the rest is easy."""

    def __init__(self) -> None:
        super().__init__()
        self.easy, self.delicate, self.head = nn.Linear(8, 16), nn.Linear(17, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.delicate.weight[:, 16] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.easy(x)
        y = torch.cat([y, 3e3 + 0 * y[:, :1]], 1)
        scores: Tensor = self.head(self.delicate(y))
        return scores


def delicate(folder: Path) -> Subject:
    torch.manual_seed(0)
    return lifted(Delicate(), (torch.randn(2, 8),), folder)


def step(**floor: float) -> QuantizeStep:
    return QuantizeStep(step="quantize", calibration_samples=64, floor=Floor.model_validate(floor))


def test_the_layer_that_does_harm_stays_float_and_no_other(tmp_path: Path) -> None:
    subject = delicate(tmp_path)
    asked = step(max_metric_drop=0.05)
    begun = run_in(tmp_path, asked, data=dataset_for(subject, tmp_path, 400))
    details = run(subject, asked, begun)
    floor = details["floor"]
    assert floor["metric"] == "agreement"
    assert floor["float"] == 1.0
    assert floor["all_int8"] < 0.95 <= floor["int8"]
    assert list(details["kept_float"]) == ["delicate"]
    assert details["kept_float"]["delicate"].startswith("kept by `floor`: alone it leaves ")
    assert next(iter(floor["sqnr_db_alone"])) == "delicate"
    again = delicate(tmp_path)
    replay(again, subject.records[-1])
    inputs = subject.example_inputs(16)
    with torch.no_grad():
        pairs = zip(outputs_of(subject.network()(*inputs)), outputs_of(again.network()(*inputs)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert again.quantization is not None
    assert again.quantization.kept_float == details["kept_float"]


def test_where_the_floor_holds_nothing_stays_float(tmp_path: Path) -> None:
    subject, asked = delicate(tmp_path), step(max_metric_drop=1.0, samples=20)
    details = run(subject, asked, run_in(tmp_path, asked, data=dataset_for(subject, tmp_path, 400)))
    assert details["kept_float"] == {}
    assert details["floor"]["sqnr_db_alone"] is None


def test_training_leaves_the_layers_float_that_were_kept(tmp_path: Path) -> None:
    subject = delicate(tmp_path)
    asked = QatStep(step="quantize", method="qat", epochs=1, floor=Floor(max_metric_drop=0.05))
    begun = run_in(tmp_path, asked, data=dataset_for(subject, tmp_path, 400))
    begun.train = finetune
    details = train_in_8_bits(subject, asked, begun)
    assert subject.quantization is not None
    assert set(subject.quantization.weight_scales) == {"easy", "head"}
    assert list(details["kept_float"]) == ["delicate"]


class Hopeless(nn.Module):
    """Every layer has an input that leaves the others no levels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 16), nn.Linear(17, 4)
        with torch.no_grad():
            self.first.weight[:, 8] = 0
            self.second.weight[:, 16] = 0

    def forward(self, x: Tensor) -> Tensor:
        outlier = 3e3 + 0 * x[:, :1]
        scores: Tensor = self.second(torch.cat([self.first(torch.cat([x, outlier], 1)), outlier], 1))
        return scores


def test_a_floor_out_of_reach_is_told_and_one_layer_is_left(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject, asked = lifted(Hopeless(), (torch.randn(2, 8),), tmp_path), step(max_metric_drop=0.05)
    begun = run_in(tmp_path, asked, data=dataset_for(subject, tmp_path, 400))
    details = run(subject, asked, begun)
    assert "floor_not_reached" in str(begun.warnings)
    assert details["int8_layers"] == 1
    assert details["floor"]["int8"] < 0.95
