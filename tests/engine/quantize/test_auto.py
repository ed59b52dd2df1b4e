"""By region: what each layer of a mixed network becomes, and that files compute it."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec import AutoStep, LayerChoice
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from tests.networks import randomised
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.export.onnx import export_onnx
from worker.engine.export.packed import export_packed
from worker.engine.graph.stored import stored_network
from worker.engine.measure.census import take_census
from worker.engine.measure.compare import outputs_of, sqnr_db
from worker.engine.measure.layers import layer_reports
from worker.engine.measure.verify import verify
from worker.engine.quantize.auto.step import choose_forms, run
from worker.engine.quantize.fold import fold
from worker.engine.subject import Subject

STEP = AutoStep(step="quantize", calibration_samples=32)


class CRNN(nn.Module):
    """Shi et al., 2015, small: convolutions read a strip of text, an LSTM reads their columns, a GRU reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.lstm = nn.LSTM(48, 24, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(48, 16, batch_first=True)
        self.head = nn.Linear(16, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(torch.relu(self.norm1(self.conv1(x)))).relu()
        y, _ = self.lstm(x.flatten(1, 2).transpose(1, 2))
        y, _ = self.gru(y)
        return self.head(y)


def crnn(folder: Path) -> Subject:
    return lifted(randomised(CRNN()), (torch.randn(2, 1, 8, 20),), folder)


def outputs(subject: Subject) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(subject.network()(*subject.example_inputs(4, seed=5)))


def test_each_region_of_a_mixed_network_becomes_what_suits_it(tmp_path: Path) -> None:
    subject = crnn(tmp_path)
    details = run(subject, STEP, run_in(tmp_path, STEP, data=dataset_for(subject, tmp_path)))
    assert details["forms"] == {
        "conv1": "static",
        "conv2": "static",
        "lstm": "dynamic",
        "gru": "stored",
        "head": "static",
    }
    assert "no 8-bit GRU" in details["kept_float"]["gru"]
    assert {row.bits for row in layer_reports(subject)} == {8}
    assert {row.name: row.input_bits for row in layer_reports(subject)} == dict.fromkeys(details["forms"], 8) | {
        "gru": 32
    }
    assert set(details["sqnr_db"]) == set(details["forms"])
    with torch.no_grad():
        expected = outputs_of(subject.original(*subject.example_inputs(4, seed=5)))
    assert sqnr_db(expected, outputs(subject)) > 20

    for form, export in (("onnx", export_onnx), ("safetensors", export_packed)):
        path = tmp_path / f"network.{form}"
        export(subject.network(), subject, path)
        holds = stored_network(subject.network(), subject.stored) if form == "safetensors" else None
        inputs = subject.example_inputs(4, seed=5)
        verify(path, inputs, outputs(subject), tmp_path, integer=True, unpacks_to=holds)
    census = take_census(tmp_path / "network.onnx", tmp_path)
    assert census.integer_kernels["QLinearConv"] == 2
    assert census.integer_kernels["DynamicQuantizeLSTM"] == 1
    assert census.float_kernels == {"GRU": 1}
    assert census.unpacked_each_call == []

    save_checkpoint(subject, [], tmp_path / "checkpoint.safetensors")
    again = crnn(tmp_path)
    restore_checkpoint(again, tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(outputs(subject), outputs(again), strict=True))
    assert layer_reports(again) == layer_reports(subject)


@pytest.mark.parametrize(
    ("name", "calibrated", "forms"),
    [
        ("bert", True, {"Linear": "static", "Embedding": "stored"}),
        ("bert", False, {"Linear": "dynamic", "Embedding": "stored"}),
        ("vit", True, {"Conv2d": "static", "Linear": "static"}),
        ("unet", True, {"Conv2d": "static", "ConvTranspose2d": "stored"}),
        ("unet", False, {"Conv2d": "stored", "ConvTranspose2d": "stored"}),
        ("lstm", False, {"Embedding": "stored", "LSTM": "dynamic", "Linear": "dynamic"}),
    ],
)
def test_the_form_of_each_kind_of_layer(name: str, calibrated: bool, forms: dict[str, str]) -> None:
    subject = subject_of(name)
    graph = fold(subject.graph, subject.example_inputs())
    found, _ = choose_forms(graph, [], calibrated=calibrated)
    assert {type(graph.get_submodule(layer)).__name__: form for layer, form in found.items()} == forms


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    step = AutoStep(step="quantize", layers=[LayerChoice(match="*", skip=True)])
    with pytest.raises(Failure) as caught:
        run(subject_of("vgg"), step, run_in(tmp_path, step))
    assert caught.value.code == Code.UNSUPPORTED_OP
