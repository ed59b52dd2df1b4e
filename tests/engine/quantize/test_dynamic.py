"""Inputs ranged at run time: the arithmetic against ONNX, the files against ONNX Runtime."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec import DynamicStep, LayerChoice
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from tests.networks import randomised
from worker.engine.export.onnx import export_onnx
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.dynamic import DynamicLSTM, to_integers
from worker.engine.graph.integer import weight_grid
from worker.engine.measure.compare import outputs_of, relative_difference, sqnr_db
from worker.engine.measure.runtime import FreshProcess
from worker.engine.quantize.dynamic.step import replay, run
from worker.engine.subject import Subject

STEP = DynamicStep(step="quantize")


def quantized(name: str, folder: Path, step: DynamicStep = STEP) -> tuple[Subject, dict[str, object]]:
    subject = subject_of(name)
    return subject, run(subject, step, run_in(folder, step))


def outputs(subject: Subject, batch: int = 5) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(subject.network()(*subject.example_inputs(batch, seed=5)))


def test_inputs_become_the_integers_of_dynamic_quantize_linear() -> None:
    generator = torch.Generator().manual_seed(0)
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])]
    results = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("q", TensorProto.UINT8, [None]),
            ("scale", TensorProto.FLOAT, []),
            ("zero", TensorProto.UINT8, []),
        )
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    model = helper.make_model(helper.make_graph(nodes, "g", [value], results))
    for shift in (-3.0, 0.0, 0.3, 5.0):
        x = torch.randn(400, generator=generator) + shift
        q, scale, zero = map(np.asarray, ReferenceEvaluator(model).run(None, {"x": x.numpy()}))
        integers, own = to_integers(x)
        assert own.item() == scale
        assert np.array_equal(integers.numpy(), q.astype(np.float32) - zero)


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        ("lstm", {"DynamicQuantizeLSTM": 2, "DynamicQuantizeMatMul": 1}),
        ("bert", {"DynamicQuantizeMatMul": 8, "MatMulIntegerToFloat": 6}),
    ],
)
def test_the_onnx_file_computes_what_the_engine_does(name: str, kernels: dict[str, int], tmp_path: Path) -> None:
    subject, details = quantized(name, tmp_path)
    path = tmp_path / "network.onnx"
    export_onnx(subject.network(), subject, path)
    expected = outputs(subject)
    with FreshProcess(tmp_path) as process:
        found, _ = process.run(path, subject.example_inputs(5, seed=5))
        operators = process.census(path)["operators"]
    assert relative_difference(expected, found) < 1e-5
    assert {kernel: operators.get(kernel) for kernel in kernels} == kernels
    with torch.no_grad():
        assert 25 < sqnr_db(outputs_of(subject.original(*subject.example_inputs(5, seed=5))), expected) < 60
    assert sum(kernels.values()) - (1 if name == "lstm" else 0) == details["int8_layers"]


class TwoWay(nn.Module):
    """Both ways, two layers, no biases, time first, states given and handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, num_layers=2, bidirectional=True, bias=False)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.lstm(x.transpose(0, 1), (hidden.transpose(0, 1), cell.transpose(0, 1)))
        return y.transpose(0, 1), h.transpose(0, 1), c.transpose(0, 1)


def test_states_go_in_and_come_out(tmp_path: Path) -> None:
    args = (torch.randn(2, 7, 6), torch.randn(2, 4, 10), torch.randn(2, 4, 10))
    subject = lifted(randomised(TwoWay()), args, tmp_path)
    run(subject, STEP, run_in(tmp_path, STEP))
    path = tmp_path / "network.onnx"
    export_onnx(subject.network(), subject, path)
    inputs = subject.example_inputs(3, seed=5)
    expected = outputs(subject, 3)
    with FreshProcess(tmp_path) as process:
        found, _ = process.run(path, inputs)
    assert relative_difference(expected, found) < 1e-5
    with torch.no_grad():
        assert sqnr_db(outputs_of(subject.original(*inputs)), expected) > 25


def test_in_plain_operators_an_lstm_is_torchs_own_on_the_rounded_weights() -> None:
    layer = randomised(nn.LSTM(5, 8, num_layers=2, bidirectional=True))
    assert isinstance(layer, nn.LSTM)
    scales = {n: weight_grid(w, None, 1.0) for n, w in layer.named_parameters() if n.startswith("weight")}
    with torch.no_grad():
        for name, scale in scales.items():
            weight = layer.get_parameter(name)
            weight.copy_(torch.round(weight / scale[:, None]) * scale[:, None])
        x = torch.randn(4, 3, 5)
        expected = layer(x)
        own = DynamicLSTM(layer, scales)
        own.plain = True
        found = own(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_files_weights_are_one_byte_each(tmp_path: Path) -> None:
    subject = lifted(
        randomised(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 16))), (torch.randn(2, 256),), tmp_path
    )
    run(subject, STEP, run_in(tmp_path, STEP))
    weights = 256 * 512 + 512 * 16
    for name, export in (("network.onnx", export_onnx), ("network.pt2", export_pt2)):
        export(subject.network(), subject, tmp_path / name)
        assert weights < (tmp_path / name).stat().st_size < weights * 1.25 + 20_000


@pytest.mark.parametrize("name", ["lstm", "vit"])
def test_a_replay_computes_the_same_bits(name: str, tmp_path: Path) -> None:
    subject, _ = quantized(name, tmp_path)
    again = subject_of(name)
    replay(again, subject.records[-1])
    again.graph.load_state_dict(subject.graph.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(subject), outputs(again), strict=True))
    assert again.quantization is not None
    assert subject.quantization is not None
    assert again.quantization.kept_float == subject.quantization.kept_float


def test_noise_is_measured_where_there_is_data(tmp_path: Path) -> None:
    subject = subject_of("lstm")
    details = run(subject, STEP, run_in(tmp_path, STEP, data=dataset_for(subject, tmp_path)))
    assert set(details["sqnr_db"]) == {"lstm", "fc"}
    assert 25 < details["lowest_sqnr_db"] < 60
    assert quantized("lstm", tmp_path)[1]["lowest_sqnr_db"] is None


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("gru", "gru", "no 8-bit GRU"),
        ("gru", "conv", "slower than in floating point"),
        ("lstm", "embedding", "looked up"),
        ("tied_language_model", "head", "shared with another layer"),
    ],
)
def test_a_layer_that_stays_float_says_why(name: str, layer: str, reason: str, tmp_path: Path) -> None:
    _, details = quantized(name, tmp_path)
    assert reason in details["kept_float"][layer]  # type: ignore[index]


def test_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    step = DynamicStep(step="quantize", layers=[LayerChoice(match="fc", skip=True)])
    with pytest.raises(Failure) as caught:
        quantized("resnet18", tmp_path, step)
    assert caught.value.code == Code.UNSUPPORTED_OP
    assert "conv1: convolutions" in caught.value.message
