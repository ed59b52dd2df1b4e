"""Weights in fewer bytes: what they are rounded to, and files that hold just that and are small."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.foretell import foretell
from models.spec import FloatStep, Fp8Step, LayerChoice, StoredStep
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from tests.networks import randomised
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.export.onnx import export_onnx
from worker.engine.export.packed import export_packed
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.describe import describe_network
from worker.engine.graph.stored import stored_network
from worker.engine.measure.compare import outputs_of, sqnr_db
from worker.engine.measure.layers import layer_reports
from worker.engine.measure.runtime import FreshProcess
from worker.engine.measure.verify import verify
from worker.engine.quantize.stored.step import Step, replay, run
from worker.engine.subject import Subject

FP16, BF16 = FloatStep(step="quantize", scheme="fp16"), FloatStep(step="quantize", scheme="bf16")
INT8 = StoredStep(step="quantize")
E4M3, E5M2 = (Fp8Step(step="quantize", scheme="fp8", format=form) for form in ("e4m3", "e5m2"))


def stored(name: str, step: Step, folder: Path) -> Subject:
    subject = subject_of(name)
    run(subject, step, run_in(folder, step))
    return subject


def outputs(subject: Subject) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(subject.network()(*subject.example_inputs(3, seed=5)))


def loss_db(subject: Subject) -> float:
    with torch.no_grad():
        return sqnr_db(outputs_of(subject.original(*subject.example_inputs(3, seed=5))), outputs(subject))


@pytest.mark.parametrize(
    ("step", "rounded"),
    [
        (FP16, lambda w: w.half().float()),
        (BF16, lambda w: w.bfloat16().float()),
        (INT8, lambda w: torch.round(w / (s := w.abs().amax(1, keepdim=True) / 127)) * s),
        (E4M3, lambda w: (w / (s := w.abs().amax(1, keepdim=True) / 448)).to(torch.float8_e4m3fn).float() * s),
        (E5M2, lambda w: (w / (s := w.abs().amax(1, keepdim=True) / 57344)).to(torch.float8_e5m2).float() * s),
    ],
)
def test_weights_are_rounded_as_the_format_says(step: Step, rounded: object, tmp_path: Path) -> None:
    subject = stored("vit", step, tmp_path)
    weight = subject.original.get_parameter("head.weight").detach()
    assert callable(rounded)
    torch.testing.assert_close(subject.graph.get_parameter("head.weight").detach(), rounded(weight), rtol=3e-7, atol=0)
    assert not torch.equal(subject.graph.get_parameter("head.weight"), weight)


@pytest.mark.parametrize(
    ("name", "step", "least_db"),
    [("lstm", FP16, 55), ("unet", INT8, 30), ("tied_language_model", E4M3, 18)],
)
def test_files_compute_what_the_engine_does(name: str, step: Step, least_db: float, tmp_path: Path) -> None:
    subject = stored(name, step, tmp_path)
    assert loss_db(subject) > least_db
    inputs, expected = subject.example_inputs(3, seed=5), outputs(subject)
    for form, export in (("onnx", export_onnx), ("pt2", export_pt2), ("safetensors", export_packed)):
        path = tmp_path / f"network.{form}"
        export(subject.network(), subject, path)
        holds = stored_network(subject.network(), subject.stored) if form == "safetensors" else None
        verify(path, inputs, expected, tmp_path, integer=False, unpacks_to=holds)
    with FreshProcess(tmp_path) as process:
        operators = process.census(tmp_path / "network.onnx")["operators"]
    assert operators.get("DequantizeLinear", 0) == 0
    bits = {(row.bits, row.input_bits) for row in layer_reports(subject)}
    assert bits == {(16 if isinstance(step, FloatStep) else 8, 32)}


@pytest.mark.parametrize(("step", "size"), [(FP16, 2), (INT8, 1), (E4M3, 1)])
def test_every_file_is_as_small_as_its_numbers(step: Step, size: int, tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 256))
    subject = lifted(randomised(layers), (torch.randn(2, 128),), tmp_path)
    run(subject, step, run_in(tmp_path, step))
    weights = 128 * 512 + 512 * 256
    scales = 0 if size == 2 else 4 * (512 + 256) + (2048 if step is E4M3 else 0)
    expected = size * weights + scales + 4 * (512 + 256)
    for form, export, rest in (("onnx", export_onnx, 4000), ("safetensors", export_packed, 8000)):
        path = tmp_path / f"network.{form}"
        export(subject.network(), subject, path)
        assert 0.5 * expected < path.stat().st_size < 1.02 * expected + rest
    export_pt2(subject.network(), subject, tmp_path / "network.pt2")
    assert (tmp_path / "network.pt2").stat().st_size < 1.02 * expected + 40_000


def test_a_weight_that_overflows_keeps_its_layer(tmp_path: Path) -> None:
    subject = subject_of("vgg")
    with torch.no_grad():
        subject.graph.get_parameter("features.0.weight")[0, 0, 0, 0] = 1e5
    details = run(subject, FP16, run_in(tmp_path, FP16))
    assert details["kept_float"] == {"features.0": "it has a weight of 100000, beyond 65504, the largest fp16"}
    rows = {row.name: row.bits for row in layer_reports(subject)}
    assert rows.pop("features.0") == 32
    assert set(rows.values()) == {16}


def test_nothing_left_to_store_is_refused(tmp_path: Path) -> None:
    step = FloatStep(step="quantize", scheme="bf16", layers=[LayerChoice(match="*", skip=True)])
    with pytest.raises(Failure) as caught:
        stored("vgg", step, tmp_path)
    assert caught.value.code == Code.UNSUPPORTED_OP
    assert "skipped by `layers`" in caught.value.message


@pytest.mark.parametrize("step", [BF16, E5M2])
def test_a_replay_computes_and_stores_the_same(step: Step, tmp_path: Path) -> None:
    subject, again = stored("gru", step, tmp_path), subject_of("gru")
    replay(again, subject.records[-1])
    again.graph.load_state_dict(subject.graph.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(outputs(subject), outputs(again), strict=True))
    assert list(again.stored) == list(subject.stored)
    assert all(torch.equal(each.values(), again.graph.get_parameter(name)) for name, each in again.stored.items())


@pytest.mark.parametrize("step", [FP16, INT8, E4M3])
def test_a_checkpoint_of_several_layers_brings_it_back(step: Step, tmp_path: Path) -> None:
    subject, again = stored("vit", step, tmp_path), subject_of("vit")
    assert len(subject.stored) > 1
    save_checkpoint(subject, [], tmp_path / "checkpoint.safetensors")
    restore_checkpoint(again, tmp_path / "checkpoint.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(outputs(subject), outputs(again), strict=True))
    assert list(again.stored) == list(subject.stored)


def test_the_noise_of_each_layer_is_measured_with_data(tmp_path: Path) -> None:
    subject = subject_of("lstm")
    details = run(subject, INT8, run_in(tmp_path, INT8, data=dataset_for(subject, tmp_path)))
    assert set(details["sqnr_db"]) == {"embedding", "lstm", "fc"}
    assert all(math.isfinite(row.sqnr_db or math.nan) for row in layer_reports(subject))


@pytest.mark.parametrize(("name", "step"), [("resnet18", FP16), ("lstm", INT8), ("tied_language_model", E4M3)])
def test_a_dry_run_bounds_what_is_stored(name: str, step: Step, tmp_path: Path) -> None:
    (left,) = foretell([step], describe_network(subject_of(name), "pt2"))
    subject = stored(name, step, tmp_path)
    network = stored_network(subject.graph, subject.stored)
    tensors = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}.values()
    found = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    bounds = left.quantities["bytes"]
    assert bounds.least <= found <= bounds.most
    assert left.quantities["parameters"].least <= sum(each.numel() for each in subject.graph.parameters())
    if name == "resnet18":
        assert bounds.most < 1.1 * found
