"""ONNX files, opened by stock ONNX Runtime: the same numbers at any batch size, nothing of this machine inside."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from models.spec import QuantizeStep
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from tests.networks import randomised
from worker.engine.export.onnx import export_onnx
from worker.engine.measure.compare import outputs_of, relative_difference, sqnr_db
from worker.engine.measure.runtime import FreshProcess
from worker.engine.quantize.step import run as quantize
from worker.engine.subject import Subject

STEP = QuantizeStep(step="quantize", calibration_samples=64)


def exported(graph: fx.GraphModule, subject: Subject, folder: Path) -> Path:
    path = folder / "network.onnx"
    export_onnx(graph, subject, path)
    return path


def in_onnxruntime(path: Path, subject: Subject, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [info.name for info in subject.inputs]
    assert [value.name for value in session.get_outputs()] == [info.name for info in subject.outputs]
    feed = {info.name: value.numpy() for info, value in zip(subject.inputs, inputs, strict=True)}
    return tuple(torch.from_numpy(value) for value in session.run(None, feed))


def assert_nothing_of_this_machine(path: Path) -> None:
    content = path.read_bytes()
    here = Path(__file__).resolve()
    for trace in (str(here.parents[3]), torch.__path__[0], "site-packages", ".py", str(Path.home()), str(path.parent)):
        assert trace.encode() not in content


class MaskedAttention(nn.Module):
    """The exporter lays out the result of attention with a mask in another order than it views it in."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.bias = nn.Linear(16, 72), nn.Parameter(torch.zeros(1, 2, 6, 6))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 6, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v, self.bias)
        return self.head(y.transpose(1, 2).reshape(x.shape[0], 6, 24))


def test_attention_with_a_mask_that_learns_is_written(tmp_path: Path) -> None:
    subject = lifted(randomised(MaskedAttention()), (torch.randn(2, 6, 16),), tmp_path)
    path = exported(subject.graph, subject, tmp_path)
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        expected = subject.graph(*inputs)
    torch.testing.assert_close(in_onnxruntime(path, subject, inputs)[0], expected)


class WindowedAttention(nn.Module):
    """Attention in windows of an image, which have a dimension of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(x.shape[0], 4, 6, 3, 2, 8).permute(3, 0, 1, 4, 2, 5).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(y.transpose(2, 3).reshape(x.shape[0], 24, 16))


def test_attention_of_five_dimensions_is_written(tmp_path: Path) -> None:
    subject = lifted(randomised(WindowedAttention()), (torch.randn(2, 24, 16),), tmp_path)
    path = exported(subject.graph, subject, tmp_path)
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        expected = subject.graph(*inputs)
    torch.testing.assert_close(in_onnxruntime(path, subject, inputs)[0], expected)


def test_an_lstm_that_projects_its_state_is_refused(tmp_path: Path) -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.LSTM(8, 8, proj_size=4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)[0]

    subject = lifted(randomised(Projected()), (torch.randn(2, 5, 8),), tmp_path)
    with pytest.raises(Failure, match="ONNX has no LSTM that projects its state, as body does") as refused:
        exported(subject.graph, subject, tmp_path)
    assert refused.value.code is Code.UNSUPPORTED_HERE


@pytest.mark.parametrize("name", ["resnet18", "bert", "two_towers", "lstm"])
def test_a_float_file_computes_what_the_engine_computes(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    path = exported(subject.graph, subject, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["network.onnx"]
    assert_nothing_of_this_machine(path)
    for batch in (1, 5):
        inputs = subject.example_inputs(batch, seed=batch)
        with torch.no_grad():
            expected = outputs_of(subject.graph(*inputs))
        assert relative_difference(expected, in_onnxruntime(path, subject, inputs)) < 1e-5


@pytest.fixture(scope="module", params=["resnet18", "vit"])
def integers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, Path]:
    """A quantized network and its file."""
    folder = tmp_path_factory.mktemp(request.param)
    subject = subject_of(request.param)
    quantize(subject, STEP, run_in(folder, STEP, data=dataset_for(subject, folder)))
    return subject, exported(subject.network(), subject, folder)


def test_an_8_bit_file_computes_what_the_simulation_computes(integers: tuple[Subject, Path]) -> None:
    subject, path = integers
    network = subject.network()
    assert_nothing_of_this_machine(path)
    for batch in (1, 8):
        inputs = subject.example_inputs(batch, seed=batch)
        with torch.no_grad():
            simulated, original = outputs_of(network(*inputs)), outputs_of(subject.original(*inputs))
        found = in_onnxruntime(path, subject, inputs)
        assert sqnr_db(simulated, found) > 35
        assert sqnr_db(original, found) > 15


def test_every_8_bit_layer_runs_on_an_integer_kernel(integers: tuple[Subject, Path]) -> None:
    subject, path = integers
    with FreshProcess(path.parent) as process:
        census = process.census(path)
    operators = Counter(census["operators"])
    assert subject.quantization is not None
    kernels = operators["QLinearConv"] + operators["QGemm"] + operators["MatMulIntegerToFloat"]
    assert kernels == len(subject.quantization.weight_scales)
    assert not {"Conv", "FusedConv", "Gemm"} & set(operators)
    assert census["float_on_integers"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"ranges": "entropy", "weight_ranges": "mse"},
        {"ranges": "percentile", "percentile": 99.0, "bias_correction": True},
        {"ranges": "mse", "symmetric": True, "equalize": True},
        {"layers": [{"match": "fc", "skip": True}, {"match": "layer1.0.conv2", "symmetric": True}]},
    ],
)
def test_every_choice_of_ranges_ends_in_the_same_kernels_with_the_numbers_of_the_engine(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    subject, step = subject_of("resnet18"), QuantizeStep.model_validate(STEP.model_dump() | fields)
    quantize(subject, step, run_in(tmp_path, step, data=dataset_for(subject, tmp_path)))
    path = exported(subject.network(), subject, tmp_path)
    inputs = subject.example_inputs(6, seed=3)
    with torch.no_grad():
        simulated = outputs_of(subject.network()(*inputs))
    assert sqnr_db(simulated, in_onnxruntime(path, subject, inputs)) > 30
    whole = [tensor for tensor in constants(path) if tensor.data_type == TensorProto.UINT8]
    zeros = [onnx.numpy_helper.to_array(tensor) for tensor in whole if not tensor.dims]
    assert subject.quantization is not None
    expected = {activation.zero_point for activation in subject.quantization.activations.values()}
    assert {int(value) for value in zeros} == expected
    with FreshProcess(tmp_path) as process:
        census = process.census(path)
    assert census["float_on_integers"] == []
    assert census["operators"]["QLinearConv"] == 15
    assert census["operators"].get("QGemm", 0) == ("fc" in subject.quantization.weight_scales)


def constants(path: Path) -> Iterator[TensorProto]:
    graph = onnx.load_model(path).graph
    yield from graph.initializer
    for node in graph.node:
        yield from (
            attribute.t for attribute in node.attribute if node.op_type == "Constant" and attribute.name == "value"
        )


@pytest.mark.parametrize("integers", ["resnet18"], indirect=True)
def test_the_additions_and_the_pooling_of_a_residual_network_run_on_integers(integers: tuple[Subject, Path]) -> None:
    _, path = integers
    with FreshProcess(path.parent) as process:
        operators = process.census(path)["operators"]
    assert operators["QLinearAdd"] == 6
    assert operators["QLinearGlobalAveragePool"] == 1
    assert "Add" not in operators


def test_the_integers_in_the_file_are_those_of_the_engine(integers: tuple[Subject, Path]) -> None:
    subject, path = integers
    model = onnx.load_model(path)
    onnx.checker.check_model(model, full_check=True)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    buffers = {name: value.numpy() for name, value in subject.network().named_buffers()}
    assert subject.quantization is not None
    for name in subject.quantization.weight_scales:
        weight, bias = stored[f"{name}.weight"], stored[f"{name}.bias"]
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(np.int16)).max() == 64
        assert bias.dtype == np.int32
        assert np.array_equal(weight, buffers[f"{name}.weight"])
        assert np.array_equal(bias, buffers[f"{name}.bias"])


class _Wide(nn.Module):
    """Enough weights that a file is mostly weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.body = nn.Conv2d(64, 128, 3, 1, 1)
        self.head = nn.Linear(128, 256)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(image)))
        return self.head(nn.functional.relu6(self.body(x)).mean((2, 3)))


def test_an_8_bit_file_is_nearly_four_times_smaller_and_runs_on_integer_kernels(tmp_path: Path) -> None:
    subject = lifted(randomised(_Wide()), (torch.randn(2, 3, 16, 16),), tmp_path)
    export_onnx(subject.original, subject, tmp_path / "original.onnx")
    quantize(subject, STEP, run_in(tmp_path, STEP, data=dataset_for(subject, tmp_path)))
    path = exported(subject.network(), subject, tmp_path)
    assert (tmp_path / "original.onnx").stat().st_size / path.stat().st_size > 3.5
    with FreshProcess(tmp_path) as process:
        census = process.census(path)
    assert census["float_on_integers"] == []
    assert census["operators"]["QLinearConv"] == 2
    assert census["operators"]["QGemm"] == 1


def test_an_operator_that_onnx_lacks_is_refused_in_words(tmp_path: Path) -> None:
    subject = subject_of("vgg")
    graph = fx.Graph()
    image = graph.placeholder("image")
    graph.output((graph.call_function(torch.ops.aten.digamma.default, (image,)),))
    with pytest.raises(Failure) as caught:
        exported(fx.GraphModule(nn.Module(), graph), subject, tmp_path)
    assert caught.value.code == Code.UNSUPPORTED_HERE
    assert "cannot be written as ONNX" in caught.value.message
    assert "digamma" in caught.value.message


def test_zeros_around_an_image_count_in_the_maximum_of_negative_values(tmp_path: Path) -> None:
    """ONNX Runtime's own optimization takes them for the lowest number."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2), nn.Conv2d(4, 2, 1))
    randomised(module)
    with torch.no_grad():
        module[0].bias.fill_(-9.0)  # type: ignore[operator]
    subject = lifted(module, (torch.zeros(2, 3, 8, 8),), tmp_path)
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        expected = subject.graph(*inputs)
    found = in_onnxruntime(exported(subject.graph, subject, tmp_path), subject, inputs)
    assert relative_difference([expected], found) < 1e-5


class _ClampsInPlace(nn.Module):
    """Of a value that nobody else has, and of one that a view shares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.second(nn.functional.hardtanh(self.first(image), -0.1, 0.2, inplace=True))
        part = x[:, :2]
        nn.functional.relu6(x, inplace=True)
        return torch.cat([part, x], 1)


def test_clamps_in_place_change_what_shares_the_value(tmp_path: Path) -> None:
    subject = lifted(_ClampsInPlace(), (torch.randn(2, 3, 8, 8),), tmp_path)
    path = exported(subject.graph, subject, tmp_path)
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        expected = outputs_of(subject.graph(*inputs))
    assert relative_difference(expected, in_onnxruntime(path, subject, inputs)) < 1e-6
    assert float(expected[0].min()) == 0.0
    assert Counter(node.op_type for node in onnx.load(path).graph.node)["Clip"] == 2
