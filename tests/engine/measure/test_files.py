"""Files in fresh processes: the gate, the clock, the memory, the sizes."""

from __future__ import annotations

import gzip
import resource
import threading
from dataclasses import dataclass
from pathlib import Path

import onnx
import psutil
import pytest
import torch
from torch import Tensor

from models.errors import Code, Failure
from models.spec import QuantizeStep
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.export.onnx import export_onnx
from worker.engine.export.pt2 import export_pt2
from worker.engine.measure.compare import outputs_of
from worker.engine.measure.layers import layer_reports
from worker.engine.measure.runtime import FreshProcess
from worker.engine.measure.size import file_size_bytes, gzip_size_bytes
from worker.engine.measure.verify import verify
from worker.engine.quantize.step import run as quantize
from worker.engine.subject import Subject
from worker.household import memory_of


@dataclass(frozen=True)
class Files:
    subject: Subject
    float_onnx: Path
    integer_onnx: Path
    float_pt2: Path

    def expected(self, inputs: tuple[Tensor, ...], *, integer: bool = False) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return outputs_of((self.subject.network() if integer else self.subject.original)(*inputs))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("files")
    subject = subject_of("vgg")
    step = QuantizeStep(step="quantize", calibration_samples=64)
    quantize(subject, step, run_in(folder, step, data=dataset_for(subject, folder)))
    paths = Files(subject, folder / "float.onnx", folder / "integer.onnx", folder / "float.pt2")
    export_onnx(subject.original, subject, paths.float_onnx)
    export_onnx(subject.network(), subject, paths.integer_onnx)
    export_pt2(subject.original, subject, paths.float_pt2)
    return paths


def inputs_of(files: Files, batch: int = 4) -> tuple[Tensor, ...]:
    return files.subject.example_inputs(batch, seed=9)


def test_a_float_file_passes_the_gate_in_each_runtime(files: Files, tmp_path: Path) -> None:
    inputs = inputs_of(files)
    for path, runtime in ((files.float_onnx, "onnxruntime "), (files.float_pt2, "torch ")):
        found = verify(path, inputs, files.expected(inputs), tmp_path, integer=False)
        assert found.reloaded
        assert found.artifact == path.name
        assert found.runtime.startswith(runtime)
        assert found.max_abs_diff_vs_engine < 1e-4
        assert found.top1_agreement_vs_engine == 1
    assert list(tmp_path.iterdir()) == []


def test_an_8_bit_file_passes_against_the_simulation(files: Files, tmp_path: Path) -> None:
    inputs = inputs_of(files, 16)
    found = verify(files.integer_onnx, inputs, files.expected(inputs, integer=True), tmp_path, integer=True)
    assert found.sqnr_db_vs_engine is not None
    assert found.sqnr_db_vs_engine > 35


def changed(path: Path, folder: Path, name: str) -> Path:
    """A copy of an ONNX file with one weight negated."""
    model = onnx.load_model(path)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(-values, name))
    onnx.save_model(model, folder / path.name)
    return folder / path.name


def test_a_file_with_a_wrong_weight_is_withheld(files: Files, tmp_path: Path) -> None:
    inputs = inputs_of(files, 16)
    for path, integer in ((files.float_onnx, False), (files.integer_onnx, True)):
        wrong = changed(path, tmp_path, "features.0.weight")
        with pytest.raises(Failure) as caught:
            verify(wrong, inputs, files.expected(inputs, integer=integer), tmp_path, integer=integer)
        assert caught.value.code == Code.VERIFICATION_FAILED
        assert "does not compute what the engine does" in caught.value.message
        assert caught.value.where == path.name


def test_a_float_file_is_not_let_through_with_8_bit_noise(files: Files, tmp_path: Path) -> None:
    inputs = inputs_of(files)
    with pytest.raises(Failure, match="does not compute"):
        verify(files.integer_onnx, inputs, files.expected(inputs), tmp_path, integer=False)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_damaged_file_is_refused_with_its_name(files: Files, suffix: str, tmp_path: Path) -> None:
    whole = files.float_onnx if suffix == ".onnx" else files.float_pt2
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(Failure) as caught, FreshProcess(tmp_path) as process:
        process.run(path, inputs_of(files))
    assert caught.value.code == Code.VERIFICATION_FAILED
    assert f"the runtime refused damaged{suffix}" in caught.value.message
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_runtime_that_dies_is_a_failure_and_not_a_hang(files: Files, tmp_path: Path) -> None:
    with FreshProcess(tmp_path) as process:
        process._process.kill()
        with pytest.raises(Failure, match=r"the runtime died on float\.onnx"):
            process.run(files.float_onnx, inputs_of(files))


def test_outputs_come_batch_by_batch_from_one_process(files: Files, tmp_path: Path) -> None:
    batches = [inputs_of(files, size) for size in (3, 1)]
    with FreshProcess(tmp_path) as process:
        found = [process.run(files.float_onnx, inputs)[0] for inputs in batches]
    for inputs, outputs in zip(batches, found, strict=True):
        torch.testing.assert_close(outputs, files.expected(inputs), rtol=1e-4, atol=1e-4)


def test_latency_is_measured_on_all_files_in_turns(files: Files, tmp_path: Path) -> None:
    with FreshProcess(tmp_path) as process:
        before, after = process.latency([files.float_onnx, files.integer_onnx], inputs_of(files, 1))
    for latency in (before, after):
        assert 0 < latency.p50 <= latency.p95
        assert latency.runtime.startswith("onnxruntime ")
        assert (latency.device, latency.batch, latency.threads) == ("cpu", 1, 1)
        assert latency.isa
    assert before.samples == after.samples >= 10


def test_peak_memory_grows_with_what_is_computed(files: Files, tmp_path: Path) -> None:
    values = 512 * 16 * 32 * 32 * 4
    for path in (files.float_onnx, files.float_pt2):
        with FreshProcess(tmp_path) as process:
            one, many, again = (process.peak_memory_bytes(path, inputs_of(files, size)) for size in (1, 512, 1))
        assert 0 < one < values
        assert many > values / 2
        assert again == pytest.approx(one, abs=values / 16), "whatever was measured before"


def test_memory_is_measured_without_taking_what_the_starter_once_took(files: Files, tmp_path: Path) -> None:
    """The kernel hands a process's largest size on to what it starts; with torch in it, this one's is much."""
    largest, done = 0, threading.Event()

    def look() -> None:
        nonlocal largest
        while not done.wait(0.01):
            children = psutil.Process().children(recursive=True)
            largest = max([largest, *(memory_of(child.pid) for child in children)])

    watching = threading.Thread(target=look)
    watching.start()
    with FreshProcess(tmp_path) as process:
        process.peak_memory_bytes(files.float_onnx, inputs_of(files, 1))
    done.set()
    watching.join()
    assert 0 < largest < resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2


def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 1_000_000)
    assert file_size_bytes(path) == 3_000_000
    assert abs(gzip_size_bytes(path) - len(gzip.compress(path.read_bytes(), compresslevel=6))) < 32


def test_the_table_of_layers_says_which_became_8_bit(files: Files) -> None:
    rows = {row.name: row for row in layer_reports(files.subject)}
    assert next(iter(rows)) == "features.0"
    first = rows["features.0"]
    assert (first.kind, first.channels_before, first.channels_after, first.bits) == ("Conv2d", 16, 16, 8)
    assert first.input_bits == 8
    assert first.sqnr_db is not None
    assert 0 <= first.sparsity < 0.1
    untouched = subject_of("vgg")
    with torch.no_grad():
        untouched.graph.get_parameter("classifier.0.weight")[:32] = 0
    rows = {row.name: row for row in layer_reports(untouched)}
    assert {row.bits for row in rows.values()} == {32}
    assert rows["classifier.0"].sparsity == 0.5
    assert rows["classifier.0"].sqnr_db is None
