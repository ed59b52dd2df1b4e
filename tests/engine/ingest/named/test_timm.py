from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.errors import Failure
from models.reading import ReadOptions
from tests import torchvision_ops
from tests.networks import randomised
from worker.engine.graph.lift import lift
from worker.engine.ingest.program import Program
from worker.engine.ingest.read import read_network


def timm_network(name: str, **settings: Any) -> nn.Module:
    torchvision_ops.declare()
    import timm

    return randomised(timm.create_model(name, pretrained=False, **{"num_classes": 10, **settings}))


def equal(program: Program, module: nn.Module) -> bool:
    subject = lift(program)
    inputs = subject.example_inputs(3)
    with torch.no_grad():
        return torch.equal(subject.graph(*inputs), module(*inputs))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return timm_network("resnet10t")


OPTIONS = ReadOptions(arch="timm/resnet10t", input_shape=("1,3,32,32",))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])
def test_safetensors_and_a_name_are_the_network_bit_for_bit(name: str, tmp_path: Path) -> None:
    module = timm_network(name)
    save_file(module.state_dict(), tmp_path / "x")
    program = read_network(tmp_path / "x", ReadOptions(arch=f"timm/{name}"))
    assert (program.format, program.warnings) == ("safetensors", ())
    assert program.inputs[0].shape == [None, 3, 224, 224]
    assert program.outputs[0].shape == [None, 10]
    assert program.parameters == {name for name, _ in module.named_parameters()}
    assert equal(program, module)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_state_dict_is_the_network_bit_for_bit_in_every_protocol(
    small: nn.Module, protocol: int, tmp_path: Path
) -> None:
    torch.save(small.state_dict(), tmp_path / "x", pickle_protocol=protocol)
    program = read_network(tmp_path / "x", OPTIONS)
    assert (program.format, program.warnings) == ("pth", ())
    assert program.inputs[0].shape == [None, 3, 32, 32]
    assert equal(program, small)


def _training(module: nn.Module) -> dict[str, Any]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return {
        "epoch": 7,
        "arch": "resnet10t",
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in module.state_dict().items()},
        "state_dict_ema": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(lr=0.1, names=["a", "b"], folder=Path("/data")),
        "metric": np.float64(71.5),
    }


WRAPPED: dict[str, tuple[Callable[[nn.Module], Any], str | None]] = {
    "module_prefix": (lambda module: nn.DataParallel(module).state_dict(), None),
    "compiled_prefix": (lambda module: {f"_orig_mod.module.{k}": v for k, v in module.state_dict().items()}, None),
    "parameters": (lambda module: dict(module.named_parameters()) | dict(module.named_buffers()), None),
    "model": (lambda module: {"model": module.state_dict()}, None),
    "nested": (lambda module: {"model": {"state_dict": module.state_dict()}, "step": 1}, "step"),
    "beside_numbers": (lambda module: {**module.state_dict(), "epoch": 3}, "epoch"),
    "timm_training": (_training, "optimizer"),
    "lightning": (lambda module: {"state_dict": {f"net.{k}": v for k, v in module.state_dict().items()}}, None),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_training_scripts_put_around_the_weights_is_taken_off_and_told(
    small: nn.Module, name: str, tmp_path: Path
) -> None:
    wrap, left_out = WRAPPED[name]
    torch.save(wrap(small), tmp_path / "x")
    program = read_network(tmp_path / "x", OPTIONS)
    assert equal(program, small)
    assert [notice.code for notice in program.warnings] == (["rest_of_file_left_out"] if left_out else [])
    assert left_out is None or f"'{left_out}'" in program.warnings[0].message


def test_smoothed_weights_come_before_others_and_the_bytes_of_the_rest_are_named(
    small: nn.Module, tmp_path: Path
) -> None:
    torch.save(_training(small), tmp_path / "x")
    message = read_network(tmp_path / "x", OPTIONS).warnings[0].message
    size = sum(tensor.numel() * tensor.element_size() for tensor in small.state_dict().values())
    assert "under 'state_dict_ema'" in message
    assert f"{size:,} bytes" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_float32_and_that_is_told(
    small: nn.Module, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in small.state_dict().items()}
    save_file(state, tmp_path / "x")
    program = read_network(tmp_path / "x", OPTIONS)
    assert [notice.code for notice in program.warnings] == ["converted_to_float32"]
    assert all(torch.equal(program.tensors[name], state[name].float()) for name in program.parameters)


@pytest.mark.parametrize(
    ("shape", "settings", "name"),
    [
        ("1,1,28,28", {"in_chans": 1}, "resnet10t"),
        ("1,3,64,48", {}, "resnet10t"),
        ("1,3,64,64", {"img_size": (64, 64)}, "vit_tiny_patch16_224"),
    ],
)
def test_the_shape_of_the_input_makes_the_network(
    shape: str, settings: dict[str, Any], name: str, tmp_path: Path
) -> None:
    module = timm_network(name, **settings)
    save_file(module.state_dict(), tmp_path / "x")
    program = read_network(tmp_path / "x", ReadOptions(arch=f"timm/{name}", input_shape=(f"x:{shape}",)))
    assert program.inputs[0].shape == [None, *map(int, shape.split(",")[1:])]
    assert equal(program, module)


@pytest.mark.parametrize("classes", [0, 7])
def test_classes_are_those_said(classes: int, tmp_path: Path) -> None:
    module = timm_network("resnet10t", num_classes=classes)
    save_file(module.state_dict(), tmp_path / "x")
    program = read_network(tmp_path / "x", OPTIONS.model_copy(update={"num_classes": classes}))
    assert program.outputs[0].shape == [None, classes or 512]


def test_a_file_from_before_batches_were_counted_is_read(small: nn.Module, tmp_path: Path) -> None:
    save_file({k: v for k, v in small.state_dict().items() if not k.endswith("num_batches_tracked")}, tmp_path / "x")
    assert equal(read_network(tmp_path / "x", OPTIONS), small)


def test_a_tag_of_pretrained_weights_gives_the_shape_they_were_trained_with(tmp_path: Path) -> None:
    save_file(timm_network("resnet10t").state_dict(), tmp_path / "x")
    program = read_network(tmp_path / "x", ReadOptions(arch="timm/resnet10t.c3_in1k"))
    assert program.inputs[0].shape == [None, 3, 176, 176]


REFUSED = {
    "near": ({"arch": "timm/resnet81"}, "Nearest: resnet18"),
    "far": ({"arch": "timm/qqqqqqqq"}, "has no network 'qqqqqqqq'."),
    "tag": ({"arch": "timm/resnet18.mine"}, "resnet18.a1_in1k"),
    "classes": ({"arch": "timm/resnet10t", "num_classes": 5}, "'fc.weight' [10, 512] in the file, [5, 512] in it"),
    "other": ({"arch": "timm/resnet18"}, "missing"),
    "rank": ({"arch": "timm/resnet10t", "input_shape": ("1,3,32",)}, "four sizes"),
    "input": ({"arch": "timm/resnet10t", "input_shape": ("image:1,3,32,32",)}, "one input, `x`"),
    "tiny": ({"arch": "timm/vit_tiny_patch16_224", "input_shape": ("1,3,4,4",)}, "tensors in the file are not those"),
    "huge": ({"arch": "timm/resnet10t", "input_shape": ("1,3,99999,99999",)}, "MiB"),
    "colours": ({"arch": "timm/resnet10t", "input_shape": ("1,9999999,32,32",)}, "of another shape: 'conv1.0.weight'"),
    "transformers": ({"arch": "transformers"}, "send a zip of config.json"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_what_does(small: nn.Module, name: str, tmp_path: Path) -> None:
    said, says = REFUSED[name]
    save_file(small.state_dict(), tmp_path / "x")
    with pytest.raises(Failure) as caught:
        read_network(tmp_path / "x", ReadOptions.model_validate(said))
    assert caught.value.code == "network_rejected"
    assert says in caught.value.message


def test_a_deployment_without_timm_says_so(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(small.state_dict(), tmp_path / "x")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Failure, match="modelpress\\[architectures\\]") as caught:
        read_network(tmp_path / "x", OPTIONS)
    assert caught.value.code == "unsupported_here"


def test_a_size_the_network_cannot_take_is_refused_with_the_line_that_says_so(tmp_path: Path) -> None:
    save_file(timm_network("halonet26t").state_dict(), tmp_path / "x")
    with pytest.raises(Failure, match=r"% self\.block_size == 0"):
        read_network(tmp_path / "x", ReadOptions(arch="timm/halonet26t", input_shape=("1,3,72,72",)))


def test_integers_for_weights_are_a_network_that_is_quantized_already(small: nn.Module, tmp_path: Path) -> None:
    state = {k: v.to(torch.int8) if v.dim() == 4 else v for k, v in small.state_dict().items()}
    save_file(state, tmp_path / "x")
    with pytest.raises(Failure, match="before it was quantized"):
        read_network(tmp_path / "x", OPTIONS)


def test_a_folder_of_transformers_is_not_for_timm(tmp_path: Path, small: nn.Module) -> None:
    save_file(small.state_dict(), tmp_path / "x")
    with pytest.raises(Failure, match="or a state dict of torch"):
        _zip(tmp_path, {"net/config.json": b"{}", "net/model.safetensors": (tmp_path / "x").read_bytes()})


def _zip(folder: Path, members: dict[str, bytes]) -> Program:
    import zipfile

    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return read_network(folder / "x.zip", OPTIONS)
