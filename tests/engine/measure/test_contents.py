"""Where a file's bytes are: what is told adds up to the file, and each layer has its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from models.spec import ExportFormat, Int4Step
from tests.engine.subjects import lifted, run_in
from worker.engine.deliver import EXPORTERS
from worker.engine.export.onnx import export_onnx
from worker.engine.lowbit.step import run as quantize
from worker.engine.measure.contents import contents, layers_of, operators_of_one_runtime


def test_weights_of_few_bits_are_those_of_their_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = lifted(Small().eval(), (torch.randn(2, 3, 8, 8),), tmp_path)
    step = Int4Step(step="quantize", scheme="int4", group_size=16, activations="int8")
    quantize(subject, step, run_in(tmp_path, step))
    export_onnx(subject.network(), subject, tmp_path / "model.onnx")
    found = contents(tmp_path / "model.onnx", {"conv", "table", "fc"})
    stored = {(part.layer, part.dtype): part.size_bytes for part in found}
    assert stored["fc", "uint8"] == 10 * 16 // 2
    assert stored["fc", "float32"] == 4 * 10 + 4 * 10, "scales and biases"
    assert stored["conv", "uint8"] == 16 * 27 // 2
    assert operators_of_one_runtime(tmp_path / "model.onnx") == ["MatMulNBits"]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.table = nn.Parameter(torch.randn(16, 1, 1))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc((self.conv(x) + self.table).relu().mean((2, 3)))
        return found


@pytest.mark.parametrize("form", ["onnx", "pt2", "safetensors"])
def test_the_bytes_of_each_layer_and_of_the_rest_add_up_to_the_file(tmp_path: Path, form: ExportFormat) -> None:
    torch.manual_seed(0)
    subject = lifted(Small().eval(), (torch.randn(2, 3, 8, 8),), tmp_path)
    path = tmp_path / f"model.{form}"
    EXPORTERS[form](subject.network(), subject, path)
    names = [name for name, _ in subject.graph.named_parameters()]
    assert layers_of(names) == {"conv", "table", "fc"}
    found = contents(path, layers_of(names))
    assert sum(part.size_bytes for part in found) == path.stat().st_size
    of_layers = {part.layer: part.size_bytes for part in found if part.layer is not None}
    expected = {"conv": 4 * (16 * 27 + 16), "table": 4 * 16, "fc": 4 * 170}
    if form == "safetensors":
        assert of_layers.keys() == expected.keys()
        assert all(of_layers[name] <= size for name, size in expected.items())
    else:
        assert of_layers == expected
        assert {part.dtype for part in found if part.layer is not None} == {"float32"}
