# mypy: disable-error-code="no-any-return"
"""Files that torch itself writes and that are no `.pt2`, and exports that cannot be compressed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.errors import Code, Failure
from tests.networks import NETWORKS, export_pt2, vgg
from worker.engine.graph.describe import describe_network
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network


def refusal(path: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        read_network(path)
    return caught.value


def test_a_state_dict_of_torch_save_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pth")
    failure = refusal(tmp_path / "x.pth")
    assert failure.code == Code.UNSAFE_PICKLE
    assert "modelpress prepare" in failure.message


def test_a_whole_module_of_torch_save_is_refused_in_both_formats(tmp_path: Path) -> None:
    for zipped in (True, False):
        torch.save(nn.Linear(2, 2), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        assert refusal(tmp_path / "x.pt").code == Code.UNSAFE_PICKLE


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))  # type: ignore[no-untyped-call]
    assert refusal(tmp_path / "x.pt").code == Code.TORCHSCRIPT_NOT_SUPPORTED


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt2").touch()
    assert refusal(tmp_path / "x.pt2").code == Code.EMPTY_FILE


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5, training=True)


class DropsAttention(Drops):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)[:, None, None, :]
        return F.scaled_dot_product_attention(y, y, y, dropout_p=0.1)


class DrawsNoise(Drops):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y + torch.randn_like(y)


class Normalises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(x)
        return y


@pytest.mark.parametrize("kind", [Drops, DropsAttention, DrawsNoise, Normalises])
def test_an_export_in_training_mode_is_refused_with_the_remedy(kind: Callable[[], nn.Module], tmp_path: Path) -> None:
    program = torch.export.export(kind().train(), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, tmp_path / "x.pt2")
    failure = refusal(tmp_path / "x.pt2")
    assert failure.code == Code.NETWORK_REJECTED
    assert "module.eval()" in failure.message


def test_an_operator_outside_the_registry_is_refused_with_its_name_and_layer(tmp_path: Path) -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.lu(x)[0]

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.middle = Inner()

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.middle(self.fc(x))
            return y

    failure = refusal(export_pt2(Outer(), (torch.randn(5, 4),), tmp_path / "x.pt2"))
    assert failure.code == Code.UNSUPPORTED_OP
    assert failure.where == "middle"
    assert "linalg_lu" in failure.message


def test_a_network_without_parameters_is_refused(tmp_path: Path) -> None:
    failure = refusal(export_pt2(nn.ReLU(), (torch.randn(2, 4),), tmp_path / "x.pt2"))
    assert failure.code == Code.NOT_TRAINABLE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_is_compressed_in_float32_and_people_are_told(dtype: torch.dtype, tmp_path: Path) -> None:
    class Casts(Drops):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros(4, dtype=dtype) + self.fc(x)
            return torch.softmax(y.float(), 1).to(dtype) + torch.ones_like(y)

    module = Casts().to(dtype)
    single = copy.deepcopy(module).float()
    program = read_network(export_pt2(module, (torch.randn(2, 4).to(dtype),), tmp_path / "x.pt2"))
    assert [notice.code for notice in program.warnings] == ["converted_to_float32"]
    assert str(dtype).removeprefix("torch.") in program.warnings[0].message
    assert (program.inputs[0].dtype, program.outputs[0].dtype) == ("float32", "float32")
    x = torch.randn(3, 4)
    expected = torch.softmax(single.fc(x), 1) + 1
    torch.testing.assert_close(lift(program).graph(x), expected)


def test_half_precision_keeps_tied_parameters_tied(tmp_path: Path) -> None:
    module, args = NETWORKS["tied_language_model"]()
    subject = lift(read_network(export_pt2(module.half(), args, tmp_path / "x.pt2")))
    assert subject.graph.get_parameter("embedding.weight") is subject.graph.get_parameter("head.weight")


def test_a_region_under_autocast_is_computed_in_float32_and_people_are_told(tmp_path: Path) -> None:
    class Mixed(Drops):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.fc(x)
                y = self.fc(y) + y
            return y.float()

    module = Mixed()
    program = read_network(export_pt2(module, (torch.randn(2, 4),), tmp_path / "x.pt2"))
    assert [notice.code for notice in program.warnings] == ["autocast_left_out"]
    x = torch.randn(3, 4)
    y = module.fc(x)
    torch.testing.assert_close(lift(program).graph(x), module.fc(y) + y)


def test_other_dynamic_sizes_are_taken_as_in_the_example(tmp_path: Path) -> None:
    module, args = vgg()
    shapes = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(module, args, dynamic_shapes=shapes), tmp_path / "x.pt2")
    program = read_network(tmp_path / "x.pt2")
    assert program.inputs[0].shape == [None, 3, 32, 32]
    assert [notice.code for notice in program.warnings] == ["size_fixed"]


def test_a_network_that_computes_for_hours_is_refused_before_it_runs(tmp_path: Path) -> None:
    class Slow(Drops):
        def forward(self, x: Tensor) -> Tensor:
            y = x @ x.transpose(1, 2)
            y = y @ y @ y @ y
            return self.fc((y @ x).mean(1))

    failure = refusal(export_pt2(Slow(), (torch.randn(2, 16384, 4),), tmp_path / "x.pt2"))
    assert "multiply-accumulates" in failure.message


class CountsConvolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many convolutions really run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.convolution.default and not isinstance(args[0], FakeTensor)
        return func(*args, **(kwargs or {}))


def test_a_network_that_computes_for_minutes_is_described_without_running_it(tmp_path: Path) -> None:
    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 64, 3), *[nn.Conv2d(64, 64, 7, padding=3) for _ in range(8)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).mean((2, 3))

    path = export_pt2(Large(), (torch.randn(2, 3, 512, 512),), tmp_path / "x.pt2")
    with CountsConvolutions() as counted:  # type: ignore[no-untyped-call]
        described = describe_network(lift(read_network(path)), "pt2")
    assert counted.count == 0
    assert described.macs == 510 * 510 * 64 * (27 + 8 * 64 * 49)
    assert sum(group.units for group in described.groups) == 8 * 64
