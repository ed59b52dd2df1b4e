"""`.pt2` files, opened by plain torch in a process that has not imported the engine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.errors import Code, Failure
from models.spec import QuantizeStep
from tests.engine.export.test_onnx import assert_nothing_of_this_machine
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from worker.engine.export.pt2 import export_pt2
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.measure.compare import outputs_of, relative_difference, sqnr_db
from worker.engine.quantize.step import run as quantize
from worker.engine.subject import Subject

STEP = QuantizeStep(step="quantize", calibration_samples=64)

_LOAD = """
import sys, torch
from safetensors.torch import load_file, save_file
program = torch.export.load(sys.argv[1])
inputs = load_file(sys.argv[2])
outputs = torch.utils._pytree.tree_leaves(program.module()(*(inputs[str(i)] for i in range(len(inputs)))))
save_file({str(i): value.detach().contiguous() for i, value in enumerate(outputs)}, sys.argv[3])
save_file({name: value.detach().contiguous() for name, value in program.state_dict.items()}, sys.argv[4])
"""


def reloaded(path: Path, inputs: tuple[torch.Tensor, ...]) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    files = [str(path.with_suffix(f".{part}")) for part in ("inputs", "outputs", "state")]
    save_file({str(index): value for index, value in enumerate(inputs)}, files[0])
    subprocess.run([sys.executable, "-I", "-c", _LOAD, str(path), *files], check=True, cwd="/")
    outputs = load_file(files[1])
    return tuple(outputs[str(index)] for index in range(len(outputs))), load_file(files[2])


def quantized(name: str, folder: Path) -> Subject:
    subject = subject_of(name)
    quantize(subject, STEP, run_in(folder, STEP, data=dataset_for(subject, folder)))
    return subject


@pytest.mark.parametrize("name", ["resnet18", "bert"])
def test_a_float_file_computes_the_same_under_the_same_names(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    path = tmp_path / "network.pt2"
    export_pt2(subject.graph, subject, path)
    assert_nothing_of_this_machine(path)
    inputs = subject.example_inputs(5, seed=3)
    outputs, state = reloaded(path, inputs)
    with torch.no_grad():
        assert relative_difference(outputs_of(subject.graph(*inputs)), outputs) < 1e-6
    named = dict(subject.graph.named_parameters())
    assert set(named) <= set(state)
    assert all(torch.equal(state[name], value) for name, value in named.items())


def test_an_8_bit_file_holds_int8_weights_and_loads_in_plain_torch(tmp_path: Path) -> None:
    subject = quantized("resnet18", tmp_path)
    network = subject.network()
    path = tmp_path / "network.pt2"
    export_pt2(network, subject, path)
    assert_nothing_of_this_machine(path)
    inputs = subject.example_inputs(3, seed=3)
    outputs, state = reloaded(path, inputs)
    with torch.no_grad():
        assert sqnr_db(outputs_of(network(*inputs)), outputs) > 100
    assert subject.quantization is not None
    assert all(state[f"{name}.weight"].dtype == torch.int8 for name in subject.quantization.weight_scales)
    floats = sum(value.numel() for value in state.values() if value.is_floating_point())
    assert floats < 0.05 * sum(value.numel() for value in state.values())


def test_no_member_is_a_pickle(tmp_path: Path) -> None:
    subject = subject_of("gru")
    path = tmp_path / "network.pt2"
    export_pt2(subject.graph, subject, path)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith((b"\x80", b"PK"))


def test_a_file_we_wrote_can_be_uploaded_again(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    path = tmp_path / "network.pt2"
    export_pt2(subject.graph, subject, path)
    again = lift(read_network(path))
    inputs = subject.example_inputs(3, seed=4)
    with torch.no_grad():
        expected, found = outputs_of(subject.graph(*inputs)), outputs_of(again.graph(*inputs))
    assert relative_difference(expected, found) == 0
    assert dict(again.graph.named_parameters()).keys() == dict(subject.graph.named_parameters()).keys()


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        y = self.layer(x)
        return {"scores": y, "more": [y.relu(), (y.exp(), {"deep": y.sum(1)})]}


def test_outputs_come_in_the_containers_the_network_returned(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    subject = lifted(_Nested(), (x,), tmp_path)
    path = tmp_path / "out.pt2"
    export_pt2(subject.graph, subject, path)
    outputs = torch.export.load(path).module()(x)
    assert type(outputs) is dict
    assert list(outputs) == ["scores", "more"]
    assert type(outputs["more"]) is list
    assert type(outputs["more"][1]) is tuple
    assert type(outputs["more"][1][1]) is dict
    assert torch.equal(outputs["more"][0], outputs["scores"].relu())


@pytest.mark.parametrize("name", ["resnet18", "bert"])
def test_a_quantized_file_is_not_taken_for_a_network_to_compress(name: str, tmp_path: Path) -> None:
    subject = quantized(name, tmp_path)
    path = tmp_path / "out.pt2"
    export_pt2(subject.network(), subject, path)
    with pytest.raises(Failure, match="the network is quantized already") as caught:
        read_network(path)
    assert caught.value.code is Code.NETWORK_REJECTED
