"""Weights of few bits beside inputs that become 8-bit integers, a block at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from models.errors import Failure
from models.foretell import foretell
from models.spec import Int4Step
from models.spec_lowbit import BLOCKS
from models.spec_types import Floor
from tests.engine.lowbit.resuming import goes_on_from_every_state
from tests.engine.subjects import dataset_for, lifted, run_in
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.export.onnx import export_onnx
from worker.engine.export.packed import export_packed
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.blocks import BlockLinear, round_in_blocks
from worker.engine.graph.describe import describe_network
from worker.engine.lowbit.step import run as quantize
from worker.engine.measure.census import take_census
from worker.engine.measure.compare import outputs_of, relative_difference
from worker.engine.measure.layers import layer_reports
from worker.engine.measure.verify import verify
from worker.engine.run import Run
from worker.engine.subject import Subject
from worker.engine.train.step import run as finetune


def asked(**fields: Any) -> Int4Step:
    return Int4Step(step="quantize", scheme="int4", activations="int8", **fields)


class Mixed(nn.Module):
    """A convolution, a layer called twice, a head, and a table whose weight another layer has as well."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Embedding(40, 48)
        self.front = nn.Conv1d(3, 48, 3, padding=1)
        self.twice = nn.Linear(48, 48)
        self.wide = nn.Linear(48, 72, bias=False)
        self.head = nn.Linear(72, 5)
        self.back = nn.Linear(48, 40)
        self.back.weight = self.names.weight

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        y = torch.relu(self.front(x)).mean(2) + self.names(token)
        y = torch.relu(self.twice(torch.relu(self.twice(y))))
        scores: Tensor = torch.cat([self.head(torch.relu(self.wide(y))), self.back(y)], 1)
        return scores


def mixed(folder: Path) -> Subject:
    torch.manual_seed(0)
    return lifted(Mixed(), (torch.randn(2, 3, 8), torch.tensor([1, 2])), folder)


def begun(subject: Subject, folder: Path) -> Run:
    run = run_in(folder, data=dataset_for(subject, folder, 100))
    run.train = finetune
    return run


def in_onnx(subject: Subject, inputs: tuple[Tensor, ...], path: Path) -> tuple[Tensor, ...]:
    export_onnx(subject.network(), subject, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    named = {info.name: value.numpy() for info, value in zip(subject.inputs, inputs, strict=True)}
    return tuple(torch.from_numpy(value) for value in session.run(None, named))


def test_the_rounding_by_hand() -> None:
    x = torch.tensor([[1.0, -127.0, 0.5, 1.5, 0.0, 0.0, 0.0, 0.0, 254.0, 3.0]])
    expected = torch.tensor([[1.0, -127.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 254.0, 4.0]])  # ties to even; a short block
    assert torch.equal(round_in_blocks(x, 4), expected)
    assert torch.equal(round_in_blocks(x[None], 4), expected[None])


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-39, 1e-37, 1e-30, 1e37])
def test_whatever_the_inputs_are_the_result_is_finite(value: float) -> None:
    x = torch.full((2, 40), value)
    assert torch.isfinite(round_in_blocks(x, 16)).all()
    assert (round_in_blocks(x, 16) - x).abs().max() <= max(value / 127, 1e-36)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_in_single(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 64) * 1e-3).to(dtype)
    assert torch.equal(round_in_blocks(x, 32), round_in_blocks(x.float(), 32).to(dtype))


def test_gradients_go_straight_through() -> None:
    x = torch.randn(3, 40, requires_grad=True)
    layer = BlockLinear(40, 7)
    layer.block = 16
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 40))


class Alone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(300, 33)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(bits, block) for bits, blocks in BLOCKS.items() for block in blocks])
def test_the_kernel_of_the_file_computes_what_the_engine_does(
    bits: int, block: int, symmetric: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    subject = lifted(Alone(), (torch.randn(2, 300),), tmp_path)
    quantize(subject, asked(bits=bits, group_size=block, symmetric=symmetric), run_in(tmp_path))
    inputs = subject.example_inputs(64, seed=1)
    with torch.no_grad():
        expected = outputs_of(subject.network()(*inputs))
        unrounded = nn.functional.linear(inputs[0], subject.graph.layer.weight, subject.graph.layer.bias)  # type: ignore[union-attr, arg-type]
    found = in_onnx(subject, inputs, tmp_path / "model.onnx")
    apart = (found[0] - expected[0]).abs() > 2e-6 * expected[0].abs().max()
    assert apart.any(1).float().mean() < 0.05, "but for a tie that is broken otherwise in one of 64 samples"
    assert relative_difference(expected, (unrounded,)) > 1e-3, "rounding is no detail"
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", plain, providers=["CPUExecutionProvider"])
    (unoptimized,) = session.run(None, {subject.inputs[0].name: inputs[0].numpy()})
    assert relative_difference(found, (torch.from_numpy(unoptimized),)) < 1e-6
    model = onnx.load(tmp_path / "model.onnx")
    assert [node.op_type for node in model.graph.node if node.domain] == ["MatMulNBits"]
    assert take_census(tmp_path / "model.onnx", tmp_path).integer_kernels == {"MatMulNBits": 1}


def test_every_file_computes_it_and_says_which_layers_do(tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    foretold = foretell([asked(group_size=32)], describe_network(subject, "pt2"))[0].quantities["bytes"]
    step = asked(group_size=32, layers=[{"match": "head", "bits": 3}])
    details = quantize(subject, step, run_in(tmp_path))
    assert details["inputs_in_8_bits"] == {"twice": 32, "wide": 32}
    assert set(details["inputs_in_float"]) == {"front", "names", "back", "head"}
    assert "not linear" in details["inputs_in_float"]["back"]
    assert foretold.least <= details["bytes"] <= foretold.most
    inputs = subject.example_inputs(16, seed=3)
    with torch.no_grad():
        expected = outputs_of(subject.network()(*inputs))
    assert relative_difference(expected, in_onnx(subject, inputs, tmp_path / "model.onnx")) < 1e-2
    export_pt2(subject.network(), subject, tmp_path / "model.pt2")
    with torch.no_grad():
        assert torch.equal(outputs_of(torch.export.load(tmp_path / "model.pt2").module()(*inputs))[0], expected[0])
    export_packed(subject.network(), subject, tmp_path / "model.safetensors")
    for form in ("onnx", "pt2", "safetensors"):
        unpacks_to = subject.graph if form == "safetensors" else None
        verify(tmp_path / f"model.{form}", inputs, expected, tmp_path, integer=True, unpacks_to=unpacks_to)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node].count("MatMulNBits") == 3
    assert len([each for each in model.graph.initializer if each.name.endswith(".codes")]) == 5, "one a weight"
    rows = layer_reports(subject)
    assert {row.kind for row in rows} == {"Conv1d", "Embedding", "Linear"}
    assert {row.name for row in rows if row.input_bits == 8} == set(details["inputs_in_8_bits"])


TRAINING: dict[str, Any] = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16, "group_size": 32}


def test_training_goes_on_from_every_state_it_kept_to_the_same_bytes(tmp_path: Path) -> None:
    details = goes_on_from_every_state(mixed, begun, asked(**TRAINING), 4, tmp_path)
    start, *losses = (row["val_loss"] for row in details["training"]["history"])
    assert min(losses) < start, "it learns"


def test_a_finished_step_is_replayed(tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    quantize(subject, asked(group_size=32), run_in(tmp_path))
    save_checkpoint(subject, [], tmp_path / "done.safetensors")
    again = mixed(tmp_path)
    restore_checkpoint(again, tmp_path / "done.safetensors")
    inputs = again.example_inputs(4)
    with torch.no_grad():
        assert torch.equal(outputs_of(again.network()(*inputs))[0], outputs_of(subject.network()(*inputs))[0])


def test_layers_that_a_floor_gives_8_bits_keep_float_inputs(tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    step = asked(bits=2, group_size=32, floor=Floor(max_metric_drop=0.0))
    details = quantize(subject, step, run_in(tmp_path, step, data=dataset_for(subject, tmp_path, 200)))
    raised = set(details["floor"]["in_8_bits"])
    assert raised
    assert set(details["inputs_in_8_bits"]) == {"twice", "wide", "head"} - raised
    rounding = {name for name, layer in subject.graph.named_modules() if isinstance(layer, BlockLinear)}
    assert rounding == set(details["inputs_in_8_bits"])


def test_a_network_without_linear_layers_is_refused(tmp_path: Path) -> None:
    subject = lifted(nn.Sequential(nn.Conv1d(3, 48, 3)), (torch.randn(2, 3, 8),), tmp_path)
    with pytest.raises(Failure, match="no layer can take 8-bit inputs"):
        quantize(subject, asked(), run_in(tmp_path))
