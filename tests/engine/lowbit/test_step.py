"""The step on networks: every scheme in every file, training, zeros, and going on from the middle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from torch import Tensor, nn

from deploy.demo_network import SmallResNet
from models.errors import Failure
from models.foretell import foretell
from models.spec import BinaryStep, CodebookStep, Int4Step, SparsifyStep, TernaryStep
from tests.engine.lowbit.resuming import goes_on_from_every_state
from tests.engine.sparsify.test_rounds import _EveryBatches as EveryBatches
from tests.engine.subjects import dataset_for, lifted, run_in
from tests.networks import randomised
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.export.onnx import export_onnx
from worker.engine.export.packed import export_packed
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.coded import is_held
from worker.engine.graph.describe import describe_network
from worker.engine.lowbit.step import run as quantize
from worker.engine.measure.compare import outputs_of, relative_difference
from worker.engine.measure.layers import layer_reports
from worker.engine.measure.unpack import unpack
from worker.engine.measure.verify import verify
from worker.engine.run import Run
from worker.engine.sparsify.step import run as sparsify
from worker.engine.subject import Subject
from worker.engine.train.step import run as finetune

LowBit = Int4Step | TernaryStep | BinaryStep | CodebookStep
STEP: TypeAdapter[LowBit] = TypeAdapter(LowBit)


def asked(scheme: str, **fields: Any) -> LowBit:
    return STEP.validate_python({"step": "quantize", "scheme": scheme, **fields})


class Mixed(nn.Module):
    """A layer of each kind that can be stored in few bits, one normalized, one whose weight another has as well."""

    def __init__(self) -> None:
        super().__init__()
        self.names = nn.Embedding(40, 24)
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.grouped = nn.Conv2d(24, 24, 3, groups=2)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.wide = nn.Linear(12, 24)
        self.narrow = nn.Linear(24, 13)
        self.back = nn.Linear(24, 40)
        self.back.weight = self.names.weight

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.up(torch.relu(self.grouped(x)))).mean((2, 3))
        x = torch.relu(self.wide(x)) + self.names(token)
        y: Tensor = torch.cat([self.narrow(x), self.back(x)], 1)
        return y


LAYERS = [
    {"match": "first", "bits": 3, "symmetric": False, "group_size": 10},
    {"match": "grouped", "scheme": "ternary"},
    {"match": "up", "scheme": "codebook", "bits": 3, "dimension": 2},
    {"match": "wide", "scheme": "binary"},
]


def mixed(folder: Path) -> Subject:
    torch.manual_seed(0)
    return lifted(Mixed(), (torch.randn(2, 3, 8, 8), torch.tensor([1, 2])), folder)


def outputs_in(file: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(torch.export.load(file).module()(*inputs))


def outputs_in_onnx(subject: Subject, inputs: tuple[Tensor, ...], folder: Path) -> tuple[Tensor, ...]:
    """Of a file of standard operators, from which ONNX Runtime has made the floats when it opened it."""
    export_onnx(subject.network(), subject, folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert "RandomNormal" not in {node.op_type for node in model.graph.node}
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "opened.onnx")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(folder / "opened.onnx").graph.node}
    assert not left & {"Mod", "Div", "Mul", "Sub", "Cast", "Expand", "DequantizeLinear"}
    named = {info.name: value.numpy() for info, value in zip(subject.inputs, inputs, strict=True)}
    return tuple(torch.from_numpy(value) for value in session.run(None, named))


def test_every_file_holds_every_scheme(tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    foretold = foretell([asked("int4", layers=LAYERS)], describe_network(subject, "pt2"))[0].quantities["bytes"]
    details = quantize(subject, asked("int4", layers=LAYERS), run_in(tmp_path))
    assert details["kept_float"] == {}
    assert set(subject.coded) == {f"{name}.weight" for name in ("names", "first", "grouped", "up", "wide", "narrow")}
    assert all(is_held(subject.graph, name, each) for name, each in subject.coded.items())
    assert foretold.least <= details["bytes"] <= foretold.most
    inputs = subject.example_inputs(5, seed=3)
    with torch.no_grad():
        expected = outputs_of(subject.graph(*inputs))
        before = outputs_of(subject.original(*inputs))
    export_packed(subject.network(), subject, tmp_path / "model.safetensors")
    found = verify(tmp_path / "model.safetensors", inputs, expected, tmp_path, integer=False, unpacks_to=subject.graph)
    assert found.max_abs_diff_vs_engine == 0.0
    export_pt2(subject.network(), subject, tmp_path / "model.pt2")
    assert outputs_in(tmp_path / "model.pt2", inputs)[0].equal(expected[0])
    export_packed(subject.original, subject, tmp_path / "original.safetensors")
    assert outputs_in(unpack(tmp_path / "original.safetensors"), inputs)[0].equal(before[0])
    assert relative_difference(expected, outputs_in_onnx(subject, inputs, tmp_path)) < 1e-5
    bits = {row.name: row.bits for row in layer_reports(subject)}
    assert bits["grouped"] == round(8 * subject.coded["grouped.weight"].stored_bytes() / (24 * 12 * 9), 3)
    assert bits["names"] == bits["back"] < 5


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 768, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize(
    ("step", "bits"),
    [
        (asked("int4", bits=bits, group_size=group), bits + 16 / group)
        for bits, group in ((2, 32), (3, 64), (4, 64), (4, 512), (5, 64), (6, 64))
    ]
    + [
        (asked("ternary", first_and_last="same"), 1.6 + 16 / 512),
        (asked("binary", first_and_last="same"), 1 + 16 / 512),
        (asked("codebook", bits=4), 4 + 32 * 16 / (512 * 768)),
        (asked("codebook", bits=6, dimension=6), 1 + 32 * 64 * 6 / (512 * 768)),
    ],
    ids=lambda value: str(value) if isinstance(value, float) else value.scheme,
)
def test_the_packed_file_is_as_small_as_the_arithmetic(step: LowBit, bits: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = lifted(Wide(), (torch.randn(2, 512),), tmp_path)
    network = describe_network(subject, "pt2")
    quantize(subject, step, run_in(tmp_path))
    export_packed(subject.network(), subject, tmp_path / "model.safetensors")
    export_packed(subject.original, subject, tmp_path / "original.safetensors")
    (coded,) = subject.coded.values()
    count = 512 * 768
    assert coded.stored_bytes() == pytest.approx(count * bits / 8, abs=8)
    (left,) = foretell([step], network)
    assert left.quantities["bytes"].least == left.quantities["bytes"].most == coded.stored_bytes()
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        program = file.get_tensor(".program").numel()
    assert (tmp_path / "model.safetensors").stat().st_size - program <= 1.05 * count * bits / 8 + 600


def test_the_order_of_tables_changes_no_packed_file(tmp_path: Path) -> None:
    """After a checkpoint it is another one."""
    subject = mixed(tmp_path)
    quantize(subject, asked("int4", symmetric=False, group_size=8), run_in(tmp_path))
    export_packed(subject.network(), subject, tmp_path / "once.safetensors")
    subject.coded = {
        name: replace(each, tables=dict(list(each.tables.items())[::-1])) for name, each in subject.coded.items()
    }
    assert any(list(each.tables) != sorted(each.tables) for each in subject.coded.values())
    export_packed(subject.network(), subject, tmp_path / "twice.safetensors")
    assert (tmp_path / "once.safetensors").read_bytes() == (tmp_path / "twice.safetensors").read_bytes()


def begun(subject: Subject, folder: Path) -> Run:
    run = run_in(folder, data=dataset_for(subject, folder, 100))
    run.train = finetune
    return run


TRAINING = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 16}


@pytest.mark.parametrize(
    "step",
    [asked("int4", bits=bits) for bits in (6, 4, 3, 2)]
    + [asked("codebook", bits=bits) for bits in (4, 2)]
    + [asked("ternary"), asked("binary")],
    ids=lambda step: f"{step.scheme} {getattr(step, 'bits', '')}",
)
def test_the_packed_file_of_a_small_network_is_within_a_twentieth_of_the_arithmetic(
    step: LowBit, tmp_path: Path
) -> None:
    """With everything that stays float, and the header; a network of which the largest layer has half of the bytes."""
    torch.manual_seed(0)
    subject = lifted(randomised(SmallResNet()), (torch.randn(2, 1, 28, 28),), tmp_path)
    details = quantize(subject, step, run_in(tmp_path))
    export_packed(subject.network(), subject, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        program = file.get_tensor(".program").numel()
    size = (tmp_path / "model.safetensors").stat().st_size - program
    assert 0.85 * details["bytes"] <= size <= 1.05 * details["bytes"]


@pytest.mark.parametrize("scheme", ["int4", "ternary", "binary", "codebook"])
def test_training_leaves_what_was_judged(scheme: str, tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    run = begun(subject, tmp_path)
    step = asked(
        scheme, first_and_last="same", **{"int4": {"bits": 2}, "codebook": {"bits": 1}}.get(scheme, {}), **TRAINING
    )
    details = quantize(subject, step, run)
    training = details["training"]
    start, *losses = (row["val_loss"] for row in training["history"])
    assert min(losses) < start, "it learns"
    assert all(is_held(subject.graph, name, each) for name, each in subject.coded.items())
    assert not any("weight_source" in name for name, _ in subject.graph.named_modules())
    assert [record.step for record in subject.records] == [f"quantize {scheme}"]
    assert min(details["sqnr_db"].values()) > -20


def test_a_start_that_was_better_is_kept(tmp_path: Path) -> None:
    subject, plain = mixed(tmp_path), mixed(tmp_path)
    step = asked("int4", epochs=1, learning_rate=9.0)
    details = quantize(subject, step, begun(subject, tmp_path))
    quantize(plain, asked("int4"), run_in(tmp_path))
    assert details["training"]["best_epoch"] == 0
    for name, value in plain.graph.state_dict().items():
        assert torch.equal(subject.graph.state_dict()[name], value), name


@pytest.mark.parametrize("scheme", ["int4", "ternary", "codebook"])
def test_zeros_stay_zero_through_training(scheme: str, tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    sparsify(subject, SparsifyStep(step="sparsify", amount=0.6), run_in(tmp_path))
    quantize(subject, asked(scheme, first_and_last="same", **TRAINING), begun(subject, tmp_path))
    for name, mask in subject.masks.items():
        found = subject.graph.get_parameter(name)
        assert not found[~mask].any(), name
        assert found[mask].any()


@pytest.mark.parametrize("scheme", ["int4", "codebook"])
def test_it_goes_on_from_every_state_it_kept_to_the_same_bytes(scheme: str, tmp_path: Path) -> None:
    goes_on_from_every_state(mixed, begun, asked(scheme, **TRAINING), 3, tmp_path)


def test_a_finished_step_is_replayed_without_data(tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    quantize(subject, asked("int4", layers=LAYERS), begun(subject, tmp_path))
    save_checkpoint(subject, [], tmp_path / "done.safetensors")
    again = mixed(tmp_path)
    restore_checkpoint(again, tmp_path / "done.safetensors")
    assert again.coded_sqnr_db == subject.coded_sqnr_db != {}
    for name in ("again", "subject"):
        export_packed(locals()[name].network(), locals()[name], tmp_path / f"{name}.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "subject.safetensors").read_bytes()


def test_when_the_time_is_up_the_best_so_far_is_delivered(tmp_path: Path) -> None:
    subject = mixed(tmp_path)
    run = begun(subject, tmp_path)
    run.interrupts = EveryBatches(1000, ends=2)
    details = quantize(subject, asked("ternary", epochs=5), run)
    assert details["cut_short"]
    assert subject.coded


def test_a_network_without_such_layers_is_refused(tmp_path: Path) -> None:
    subject = lifted(Wide(), (torch.randn(2, 512),), tmp_path)
    with pytest.raises(Failure, match="no weight can be stored in few bits"):
        quantize(subject, asked("int4", layers=[{"match": "*", "skip": True}]), run_in(tmp_path))
