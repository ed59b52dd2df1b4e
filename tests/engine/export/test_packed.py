"""The packed file: nothing is lost, zeros take a bit, and a fresh process gets the engine's network back."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from models.formats import HEAD_BYTES, sniff_network
from models.report import Verification
from models.spec import QuantizeStep, SparsifyStep
from tests.engine.subjects import dataset_for, lifted, run_in, subject_of
from worker.engine.export.onnx import export_onnx
from worker.engine.export.packed import export_packed, pack
from worker.engine.export.pt2 import export_pt2
from worker.engine.measure.compare import outputs_of
from worker.engine.measure.unpack import unpack
from worker.engine.measure.verify import verify
from worker.engine.quantize.step import run as quantize
from worker.engine.sparsify.step import run as sparsify
from worker.engine.subject import Subject

ROOT = Path(__file__).resolve().parents[3]


def sparse(name: str, folder: Path, amount: float = 0.8) -> Subject:
    subject = subject_of(name)
    sparsify(subject, SparsifyStep(step="sparsify", amount=amount), run_in(folder))
    return subject


def members(archive: zipfile.ZipFile) -> dict[str, bytes]:
    return {name: archive.read(name) for name in archive.namelist()}


def assert_round_trip(graph: fx.GraphModule, subject: Subject, folder: Path) -> Path:
    """Pack a `.pt2` and find every byte of its members again; the packed file comes back."""
    export_pt2(graph, subject, folder / "whole.pt2")
    pack(folder / "whole.pt2", folder / "packed.safetensors")
    with (
        zipfile.ZipFile(folder / "whole.pt2") as whole,
        zipfile.ZipFile(unpack(folder / "packed.safetensors")) as found,
    ):
        assert members(found) == members(whole)
    return folder / "packed.safetensors"


@pytest.mark.parametrize("name", ["resnet18", "bert", "lstm", "tied_language_model", "two_towers"])
def test_every_byte_comes_back(name: str, tmp_path: Path) -> None:
    subject = sparse(name, tmp_path)
    assert_round_trip(subject.graph, subject, tmp_path)


def test_every_byte_of_an_8_bit_network_comes_back(tmp_path: Path) -> None:
    subject = sparse("resnet18", tmp_path)
    step = QuantizeStep(step="quantize", calibration_samples=8)
    quantize(subject, step, run_in(tmp_path, data=dataset_for(subject, tmp_path, 40)))
    packed = assert_round_trip(subject.network(), subject, tmp_path)
    assert packed.stat().st_size < 0.6 * (tmp_path / "whole.pt2").stat().st_size


class _Odd(nn.Module):
    """Types and layouts: half precision, integers, a scalar, an empty buffer, a negative zero, a transposed weight."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=generator).t())
        self.thin = nn.Parameter(torch.randn(4, 300, generator=generator).bfloat16() * (torch.arange(300) % 5 == 0))
        self.register_buffer("table", torch.arange(4000) * (torch.arange(4000) % 7 == 0))
        self.register_buffer("scale", torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("signs", torch.where(torch.arange(600) % 2 == 0, -0.0, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        table, scale, signs = (self.get_buffer(name) for name in ("table", "scale", "signs"))
        y: Tensor = x @ self.weight.t() + (self.thin.float().sum(1) * scale).float() + signs.sum()
        return y + table[:4]


def test_types_layouts_and_negative_zeros_come_back(tmp_path: Path) -> None:
    program = torch.export.export(_Odd().eval(), (torch.randn(2, 6),))
    torch.export.save(program, tmp_path / "odd.pt2")
    pack(tmp_path / "odd.pt2", tmp_path / "odd.safetensors")
    found = torch.export.load(unpack(tmp_path / "odd.safetensors"))
    assert found.state_dict.keys() == program.state_dict.keys()
    for name, expected in program.state_dict.items():
        value = found.state_dict[name]
        assert (value.dtype, value.shape, value.stride()) == (expected.dtype, expected.shape, expected.stride())
        assert torch.equal(value, expected)
        assert torch.equal(value.signbit(), expected.signbit())


def verified(path: Path, subject: Subject) -> Verification:
    inputs = subject.example_inputs(5, seed=3)
    with torch.no_grad():
        expected = outputs_of(subject.graph(*inputs))
    return verify(path, inputs, expected, path.parent, integer=False, unpacks_to=subject.graph)


def test_a_fresh_process_computes_the_engines_bits_from_the_engines_weights(tmp_path: Path) -> None:
    subject = sparse("vit", tmp_path)
    export_packed(subject.graph, subject, tmp_path / "model.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors"}
    found = verified(tmp_path / "model.safetensors", subject)
    assert found.max_abs_diff_vs_engine == 0.0
    assert found.runtime.startswith("torch ")
    assert found.runtime.endswith(", unpacked")


def test_a_file_with_one_wrong_bit_does_not_pass(tmp_path: Path) -> None:
    subject = sparse("vit", tmp_path)
    export_packed(subject.graph, subject, tmp_path / "model.safetensors")
    with torch.no_grad():
        weight = subject.graph.get_parameter("head.weight")
        weight.view(torch.int32)[0, 0] ^= 1
    with pytest.raises(Failure) as caught:
        verified(tmp_path / "model.safetensors", subject)
    assert caught.value.code == Code.VERIFICATION_FAILED
    assert "does not hold the engine's head.weight" in caught.value.message


class _Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 512, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_the_size_is_that_of_the_arithmetic(density: float, tmp_path: Path) -> None:
    """Finite floats of random bits, which nothing shrinks: 32 bits each that is not zero, and one for each that may
    be. A mask of fewer than half is itself deflated, to its entropy at best."""
    generator = torch.Generator().manual_seed(0)
    subject = lifted(_Wide(), (torch.randn(2, 512),), tmp_path)
    count = 512 * 512
    bits = torch.randint(-(2**31), 2**31 - 1, (512, 512), generator=generator).int()
    bits = torch.where(bits & 0x7F800000 == 0x7F800000, bits & ~0x40000000, bits)
    bits *= torch.rand(512, 512, generator=generator) < density
    subject.graph.get_parameter("layer.weight").data = bits.view(torch.float32)
    export_packed(subject.graph, subject, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        program = file.get_tensor(".program").numel()
    size = (tmp_path / "model.safetensors").stat().st_size - program
    nonzero = int(bits.count_nonzero())
    bit_a_weight = (count + 32 * nonzero) / 8 if density < 1 else 4 * count
    entropy = -sum(share * math.log2(share) for share in (density, 1 - density) if 0 < share < 1)
    assert (count * entropy + 32 * nonzero) / 8 <= size <= 1.05 * bit_a_weight
    if density != 0.1:
        assert size == pytest.approx(bit_a_weight, rel=0.05)


def test_trained_looking_weights_take_less_than_the_arithmetic(tmp_path: Path) -> None:
    subject = lifted(_Wide(), (torch.randn(2, 512),), tmp_path)
    sparsify(subject, SparsifyStep(step="sparsify", amount=0.9), run_in(tmp_path))
    export_packed(subject.graph, subject, tmp_path / "model.safetensors")
    export_packed(subject.original, subject, tmp_path / "original.safetensors")
    size, original = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("model", "original"))
    count = 512 * 512
    assert size < (count + 32 * 0.1 * count) / 8
    assert original < 0.9 * 4 * count
    assert size < original / 7


def test_any_safetensors_reader_lists_the_large_parts_by_name(tmp_path: Path) -> None:
    subject = lifted(_Wide(), (torch.randn(2, 512),), tmp_path)
    sparsify(subject, SparsifyStep(step="sparsify", amount=0.5), run_in(tmp_path))
    export_packed(subject.graph, subject, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"modelpress-packed": "3"}
        assert set(file.keys()) == {".program", ".manifest", ".small", "layer.weight.mask", "layer.weight.values"}
        mask = file.get_tensor("layer.weight.mask").numpy()
    weight = subject.graph.get_parameter("layer.weight").detach()
    assert (np.unpackbits(mask, bitorder="little") == (weight != 0).flatten().numpy()).all()


def test_an_upload_of_one_is_refused_with_the_way_back(tmp_path: Path) -> None:
    subject = sparse("gru", tmp_path)
    export_packed(subject.graph, subject, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(Failure) as caught:
        sniff_network(content[:HEAD_BYTES], len(content), "model.safetensors")
    assert caught.value.message == (
        "the file is a packed file of modelpress. Open it with `modelpress.load` and send what `modelpress.prepare` "
        "makes of that."
    )


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("once", "twice"):
        subject = sparse("gru", tmp_path)
        export_packed(subject.graph, subject, tmp_path / f"{name}.safetensors")
        contents.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_another_file_is_not_taken_for_a_packed_one(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "newer.safetensors", {"modelpress-packed": "4"})
    for name in ("plain", "newer"):
        with pytest.raises(ValueError, match="not a file of the format modelpress-packed, layout 3"):
            unpack(tmp_path / f"{name}.safetensors")


def test_a_damaged_one_is_said_to_be(tmp_path: Path) -> None:
    for name, entry in (("lost", "other"), ("broken", ".manifest")):
        path = tmp_path / f"{name}.safetensors"
        save_file({entry: torch.zeros(9, dtype=torch.uint8)}, path, {"modelpress-packed": "3"})
        with pytest.raises(ValueError, match="a damaged file of the format modelpress-packed"):
            unpack(path)


def test_zeros_are_in_the_files_and_masks_are_not(tmp_path: Path) -> None:
    subject = sparse("resnet18", tmp_path)
    export_pt2(subject.graph, subject, tmp_path / "model.pt2")
    export_onnx(subject.graph, subject, tmp_path / "model.onnx")
    program = torch.export.load(tmp_path / "model.pt2")
    assert program.state_dict.keys() == subject.original.state_dict().keys()
    stored = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer
    }
    assert not any(name.endswith("mask") for name in stored)
    for name, mask in subject.masks.items():
        assert torch.equal(program.state_dict[name] != 0, mask), name
        if name in stored:
            assert torch.equal(stored[name] != 0, mask), name
    assert len(stored.keys() & subject.masks.keys()) > 5


def test_its_owner_unpacks_it_as_the_engine_does() -> None:
    ours, theirs = (ROOT / path for path in ("worker/engine/measure/unpack.py", "client/modelpress/unpack.py"))
    assert ours.read_bytes() == theirs.read_bytes()
