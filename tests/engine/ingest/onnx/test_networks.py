"""Whole networks from ONNX files: the numbers of ONNX Runtime, the layers of the module, and cuts that hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from tests.engine.graph.cuts import difference, halve_and_prove
from tests.engine.ingest.onnx.exports import Exporter, export_onnx
from tests.engine.ingest.onnx.graphs import compare
from tests.networks import NETWORKS
from worker.engine.export.onnx import export_onnx as write_onnx
from worker.engine.graph.cost import parameters
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network

EXPORTS: list[tuple[str, Exporter]] = [
    ("mobilenet_v3", "dynamo"),
    ("vit", "dynamo"),
    ("bert", "dynamo"),
    ("two_towers", "dynamo"),
    ("resnet18", "torchscript"),
    ("unet", "torchscript"),
    ("convnext", "torchscript"),
    ("gru", "torchscript"),
    ("lstm", "torchscript"),
    ("bert_without_mask", "torchscript"),
]


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_a_network_gives_what_onnx_runtime_gives_and_can_be_cut(name: str, exporter: Exporter, tmp_path: Path) -> None:
    module, args = NETWORKS[name]()
    path = export_onnx(module, args, tmp_path / "network.onnx", exporter)
    subject = lift(read_network(path))
    compare(path, subject)
    halved = halve_and_prove(subject.graph, subject.example_inputs())
    assert parameters(halved.after) < 0.4 * parameters(halved.before)


@pytest.mark.parametrize(
    ("name", "exporter"), [("vit", "dynamo"), ("two_towers", "torchscript"), ("lstm", "torchscript")]
)
def test_a_file_for_one_sample_is_read_for_any_batch(name: str, exporter: Exporter, tmp_path: Path) -> None:
    module, args = NETWORKS[name]()
    path = export_onnx(module, tuple(value[:1] for value in args), tmp_path / "network.onnx", exporter, fixed=True)
    subject = lift(read_network(path))
    assert [info.shape[0] for info in (*subject.inputs, *subject.outputs)] == [None] * (
        len(subject.inputs) + len(subject.outputs)
    )
    inputs = subject.example_inputs(batch=4)
    with torch.no_grad():
        assert difference(tuple(tensors(module(*inputs))), tuple(tensors(subject.graph(*inputs)))) < 1e-5


def tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    assert isinstance(value, dict | tuple)
    return list(value.values() if isinstance(value, dict) else value)


@pytest.mark.parametrize(("name", "exporter"), [("vgg", "torchscript"), ("convnext", "dynamo")])
def test_layers_keep_the_names_that_the_module_has(name: str, exporter: Exporter, tmp_path: Path) -> None:
    module, args = NETWORKS[name]()
    subject = lift(read_network(export_onnx(module, args, tmp_path / "network.onnx", exporter)))
    own = {key: tuple(value.shape) for key, value in module.named_parameters()}
    assert {key: tuple(value.shape) for key, value in subject.graph.named_parameters()} == own


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_table_that_is_also_the_last_layer_stays_one_weight(exporter: Exporter, tmp_path: Path) -> None:
    module, args = NETWORKS["tied_language_model"]()
    path = export_onnx(module, args, tmp_path / "network.onnx", exporter)
    held = sum(len(tensor.raw_data) for tensor in onnx.load(path).graph.initializer)
    subject = lift(read_network(path))
    compare(path, subject, high=20)
    assert parameters(subject.graph) == sum(value.numel() for value in module.parameters()) < held // 4


def test_recurrent_weights_have_the_names_and_values_of_torch(tmp_path: Path) -> None:
    module, args = NETWORKS["gru"]()
    subject = lift(read_network(export_onnx(module, args, tmp_path / "network.onnx", "torchscript")))
    own = {name: value for name, value in module.named_parameters() if name.startswith("gru.")}
    found = {name: value for name, value in subject.graph.named_parameters() if name.startswith("gru.")}
    assert set(found) == set(own)
    for name in found:
        assert torch.equal(found[name], own[name]), name


def test_merged_batch_normalization_is_told(tmp_path: Path) -> None:
    module, args = NETWORKS["resnet18"]()
    merged = read_network(export_onnx(module, args, tmp_path / "merged.onnx", "torchscript"))
    assert "batch_norm_merged" in [notice.code for notice in merged.warnings]
    module, args = NETWORKS["vit"]()
    normalised = read_network(export_onnx(module, args, tmp_path / "normalised.onnx", "torchscript"))
    assert normalised.warnings == ()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    module, args = NETWORKS["mobilenet_v3"]()
    subject = lift(read_network(export_onnx(module, args, tmp_path / "network.onnx", "torchscript")))
    halve_and_prove(subject.graph, subject.example_inputs())
    write_onnx(subject.graph, subject, tmp_path / "cut.onnx")
    again = lift(read_network(tmp_path / "cut.onnx"))
    inputs = subject.example_inputs(batch=3)
    with torch.no_grad():
        assert difference(subject.graph.eval()(*inputs), again.graph(*inputs)) < 1e-5
    assert parameters(again.graph) <= parameters(subject.graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_network_in_another_precision_is_compressed_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    module, args = NETWORKS["vgg"]()
    path = export_onnx(module.to(dtype), tuple(value.to(dtype) for value in args), tmp_path / "n.onnx", "torchscript")
    program = read_network(path)
    assert "converted_to_float32" in [notice.code for notice in program.warnings]
    assert {info.dtype for info in (*program.inputs, *program.outputs)} == {"float32"}
    inputs = lift(program).example_inputs(batch=3)
    with torch.no_grad():
        assert difference(module.float()(*inputs), lift(program).graph(*inputs)) < 1e-5
