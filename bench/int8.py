"""8-bit integers: ours beside onnxruntime's own quantizer and NNCF, and training beside none.

All quantize the same float network over the same samples, each as its documentation says for this processor; what they
write is run by onnxruntime, one thread, taking turns. Right or the same as float is counted on samples that nothing was
calibrated, trained or chosen on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from bench.wheels import HEIGHT, OCR, WIDTH, files, from_rapidocr, magika, words
from deploy.demo_network import MEAN, STD, digits, part, train
from modelpress import prepare
from models.reading import ReadOptions
from models.spec import Data, Spec, Step, Transform
from worker.engine.data.dataset import open_dataset
from worker.engine.export.onnx import export_onnx
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.measure.machine import signed_products_saturate
from worker.engine.measure.runtime import FreshProcess
from worker.engine.pipeline import STEPS
from worker.engine.run import Run
from worker.engine.train.step import run as finetune

CALIBRATED, TRAINED, SCORED = 256, 1024, 1000
EPOCHS = 8
OPSET = 17
Array = NDArray[Any]
PTQ: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, ranges by choice": {"ranges": "auto", "bias_correction": True},
}
TRAINED_TOO: dict[str, dict[str, Any]] = {
    "ours, trained": {"method": "qat", "epochs": 3},
    "ours, 4-bit weights": {"scheme": "int4"},
    "ours, 4-bit weights, trained": {"scheme": "int4", "epochs": 3},
    "ours, 2-bit weights": {"scheme": "int4", "bits": 2, "group_size": 32},
    "ours, 2-bit weights, trained": {"scheme": "int4", "bits": 2, "group_size": 32, "epochs": 3},
}
"""Not for the recognizer of text: training it takes a processor too long."""
PEERS = (ONNXRUNTIME, NNCF) = ("onnxruntime", "NNCF")
"""May fail: a row then says how."""


@dataclass(frozen=True)
class Case:
    """A float network, and samples of one input in three parts: to calibrate on, to train on, to score. `labels` only
    of a network whose answers are known; else the float network's are."""

    upload: Path
    float_file: Path
    options: ReadOptions
    data_file: Path
    data: Data
    calibrated: Array
    scored: Array
    labels: Array | None
    training: bool


def int8(console: Console) -> None:
    """Print a table a network."""
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as scratch:
        for name, case in _cases(console, Path(scratch)):
            console.print(_table(console, name, case, Path(scratch)))
    if find_spec("nncf") is None:
        console.print("without NNCF: `pip install nncf==3.4.0` adds its rows")


def _table(console: Console, name: str, case: Case, folder: Path) -> Table:
    makers: dict[str, Callable[[Path], None]] = {
        what: partial(_ours, case, fields, folder)
        for what, fields in (PTQ | (TRAINED_TOO if case.training else {})).items()
    }
    makers[ONNXRUNTIME] = partial(_onnxruntime, case, folder)
    if find_spec("nncf") is not None:
        makers[NNCF] = partial(_nncf, case, folder)
    written = {"float": case.float_file}
    failed: dict[str, str] = {}
    for what, make in makers.items():
        console.print(f"{name}: {what} …", style="dim")
        path = folder / f"{what}.onnx"
        try:
            with chdir(folder):  # where the peers leave files of theirs
                make(path)
            _answers(path, case.scored[:1])
        except Exception as error:  # of whatever class the peers raise
            if what not in PEERS:
                raise
            failed[what] = f"{type(error).__name__}: {error}".partition("\n")[0][:60]
        else:
            written[what] = path
    with FreshProcess(folder) as process:
        times = process.latency(list(written.values()), (torch.from_numpy(case.scored[:1].copy()),))
    answers = {what: _answers(path, case.scored) for what, path in written.items()}
    truth = answers["float"].argmax(-1) if case.labels is None else case.labels
    title = f"{name}: {'right' if case.labels is not None else 'as float'}, of {len(case.scored):,}"
    table = Table(title=title)
    for heading in ("", "right" if case.labels is not None else "as float", "noise, dB", "bytes", "ms", "faster"):
        table.add_column(heading, justify="right" if heading else "left")
    for (what, path), latency in zip(written.items(), times, strict=True):
        table.add_row(
            what,
            f"{(answers[what].argmax(-1) == truth).mean():.2%}",
            "" if what == "float" else f"{_sqnr(answers['float'], answers[what]):.1f}",
            f"{path.stat().st_size:,}",
            f"{latency.p50:.3f}",
            f"{times[0].p50 / latency.p50:.2f}x",
        )
    for what, reason in failed.items():
        table.add_row(what, f"fails: {reason}")
    return table


def _ours(case: Case, fields: dict[str, Any], folder: Path, path: Path) -> None:
    subject = lift(read_network(case.upload, case.options))
    step = TypeAdapter[Any](Step).validate_python({"step": "quantize", **fields})
    spec = Spec(model="net_bench", data=case.data, steps=[step])
    opened = open_dataset(case.data_file, case.data, subject.inputs, 0)
    run = Run(spec, folder, lambda event: None, torch.device("cpu"), data=opened, train=finetune)
    STEPS[type(step)](subject, step, run)
    export_onnx(subject.network(), subject, path)


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, samples: Array) -> None:
        self._rows = iter([{name: samples[i : i + 1]} for i in range(len(samples))])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._rows, None)


def _prepared(case: Case, folder: Path) -> Path:
    """The float network as both peers ask for it: of an opset that has ranges per channel, and preprocessed."""
    network = onnx.load(case.float_file)
    (opset,) = (each.version for each in network.opset_import if each.domain == "")
    if opset < 13:
        network = version_converter.convert_version(network, OPSET)
    given, ready = folder / "given.onnx", folder / "ready.onnx"
    onnx.save(network, given)
    try:
        quant_pre_process(given, ready)
    except Exception:  # of whatever class, for a graph whose shapes it cannot follow
        quant_pre_process(given, ready, skip_symbolic_shape=True)
    return ready


def _onnxruntime(case: Case, folder: Path, path: Path) -> None:
    """Static, per channel, QDQ; weights of 7 bits where products saturate, as its guide says."""
    ready = _prepared(case, folder)

    def quantize(**options: bool) -> None:
        quantize_static(
            ready,
            path,
            _Samples(_input_of(case.float_file), case.calibrated),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=signed_products_saturate(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=options,
        )

    try:
        quantize()
    except ValueError as error:  # its care for large biases takes the scales of a matrix for one (1.31)
        if "truth value of an array" not in str(error):
            raise
        quantize(QDQDisableWeightAdjustForInt32Bias=True)


def _nncf(case: Case, folder: Path, path: Path) -> None:
    """`nncf.quantize` with what it does by default."""
    import nncf

    name = _input_of(case.float_file)
    rows = [{name: case.calibrated[i : i + 1]} for i in range(len(case.calibrated))]
    quantized = nncf.quantize(onnx.load(_prepared(case, folder)), nncf.Dataset(rows), subset_size=len(rows))
    onnx.save(quantized, path)


def _input_of(path: Path) -> str:
    name: str = onnx.load(path).graph.input[0].name
    return name


def _answers(path: Path, samples: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: samples[i : i + 50]})[0] for i in range(0, len(samples), 50)])


def _sqnr(exact: Array, rounded: Array) -> float:
    """Signal to quantization noise."""
    noise = np.square(exact - rounded, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(exact, dtype=np.float64).sum() / noise))


def _cases(console: Console, folder: Path) -> Iterator[tuple[str, Case]]:
    yield "the demo's ResNet", _demo(console, folder)
    samples = files(CALIBRATED + TRAINED + SCORED, 0)
    yield "kinds of files (magika)", _unlabelled(magika(), ReadOptions(), samples, folder, training=True)
    for name, ending in OCR.items():
        path = from_rapidocr(ending, folder)
        if path is None:
            console.print(f"without {name}: `make real-files` brings it")
            continue
        options = ReadOptions(input_shape=(f"1,3,{HEIGHT},{WIDTH}",))
        pictures = words(CALIBRATED + TRAINED + SCORED, 0)
        yield name, _unlabelled(path, options, pictures, folder, training="cls" in ending)


def _demo(console: Console, folder: Path) -> Case:
    console.print("training the demo's network …")
    data = digits()
    network = train(data, EPOCHS, lambda epoch, value: None).eval()
    upload = prepare(network, (torch.zeros(2, 1, 28, 28),), path=folder / "demo.pt2")
    subject = lift(read_network(upload))
    export_onnx(subject.original, subject, folder / "demo.onnx")
    scored, labels = part(data, "test")
    kept = ~((data["split"] == "val") & (np.cumsum(data["split"] == "val") > CALIBRATED))
    np.savez(folder / "digits.npz", **{name: values[kept] for name, values in data.items()})
    return Case(
        upload=upload,
        float_file=folder / "demo.onnx",
        options=ReadOptions(),
        data_file=folder / "digits.npz",
        data=Data(dataset="digits", task="classification", transform=Transform(mean=[MEAN], std=[STD])),
        calibrated=part(data, "val")[0][:CALIBRATED].numpy(),
        scored=scored.numpy(),
        labels=labels.numpy(),
        training=True,
    )


def _unlabelled(path: Path, options: ReadOptions, samples: Array, folder: Path, *, training: bool) -> Case:
    parts = {"val": CALIBRATED, "train": TRAINED, "test": SCORED}
    data_file = folder / f"{path.stem}.npz"
    np.savez(data_file, x=samples, split=np.repeat(list(parts), list(parts.values())))
    return Case(
        upload=path,
        float_file=path,
        options=options,
        data_file=data_file,
        data=Data(dataset="samples", task="none"),
        calibrated=samples[:CALIBRATED],
        scored=samples[CALIBRATED + TRAINED :],
        labels=None,
        training=training,
    )
