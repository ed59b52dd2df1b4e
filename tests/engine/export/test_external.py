"""A network too large for one ONNX file: written as an archive, run from it, measured on it, and read again."""

from __future__ import annotations

import tarfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from models.reading import ReadOptions
from tests.engine.subjects import subject_of
from worker.engine.deliver import EXPORTERS
from worker.engine.export import external
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.measure.compare import relative_difference
from worker.engine.measure.contents import contents, layers_of
from worker.engine.measure.metrics import forward_of
from worker.engine.measure.runtime import FreshProcess
from worker.engine.measure.verify import verify


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(external, "LARGEST_BYTES", 100_000)
    subject = subject_of("resnet18")
    path = tmp_path / "model.onnx"
    path.write_bytes(b"of an earlier export")
    EXPORTERS["onnx"](subject.network(), subject, path)
    return external.written(path)


def test_the_archive_holds_graph_and_weights_and_nothing_of_the_machine(archive: Path, tmp_path: Path) -> None:
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx.tar"}
    with tarfile.open(archive) as opened:
        members = opened.getmembers()
        assert [member.name for member in members] == ["model.onnx", "model.onnx.data"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        (tmp_path / "out").mkdir()
        for member in members:
            file = opened.extractfile(member)
            assert file is not None
            (tmp_path / "out" / member.name).write_bytes(file.read())
    assert (tmp_path / "out/model.onnx").stat().st_size < 50_000
    x = subject_of("resnet18").example_inputs()[0]
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")  # as its owner unpacks it
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = forward_of(subject_of("resnet18").graph)((x,))
    assert relative_difference(expected, [torch.from_numpy(found)]) <= 1e-4
    onnx.checker.check_model(str(tmp_path / "out/model.onnx"))


def test_it_is_verified_and_measured_as_it_is_delivered(archive: Path, tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    inputs = subject.example_inputs()
    found = verify(archive, inputs, forward_of(subject.network())(inputs), tmp_path, integer=False)
    assert found.artifact == "model.onnx.tar"
    assert found.runtime.startswith("onnxruntime")
    sample = subject.example_inputs(1)
    with FreshProcess(tmp_path) as process:
        before, after = process.latency([archive, archive], sample)
        assert before.samples == after.samples >= 10
    with FreshProcess(tmp_path) as process:
        assert process.peak_memory_bytes(archive, sample) > 0
    names = [name for name, _ in subject.graph.named_parameters()]
    parts = contents(archive, layers_of(names))
    assert sum(part.size_bytes for part in parts) == archive.stat().st_size
    weights = 4 * subject.graph.get_submodule("fc").weight.numel()  # type: ignore[operator]
    assert sum(part.size_bytes for part in parts if part.layer == "fc") >= weights


def test_it_can_be_uploaded_again(archive: Path) -> None:
    subject = subject_of("resnet18")
    again = lift(read_network(archive, ReadOptions()))
    inputs = subject.example_inputs()
    assert relative_difference(forward_of(subject.graph)(inputs), forward_of(again.graph)(inputs)) <= 1e-4


def test_a_network_that_became_small_enough_is_one_file_again(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "LARGEST_BYTES", 1 << 30)
    subject = subject_of("resnet18")
    EXPORTERS["onnx"](subject.network(), subject, tmp_path / "model.onnx")
    assert external.written(tmp_path / "model.onnx") == tmp_path / "model.onnx"
    assert not archive.exists()
