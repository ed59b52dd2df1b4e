"""The fresh process that opens a finished file with the stock runtime: `python -P -m worker.engine.measure.session`.

One JSON request a line on stdin, one JSON answer a line on stdout, until stdin ends; `runtime.py` is the other side.
Tensors travel as safetensors files named by position. Nothing of the engine is imported here but what unpacks a packed
file, which its owner has too, so that what runs is the file alone. `torch.export.load` is only ever given a file that
the engine itself has just written.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from worker.engine.measure.unpack import unpack

Array = NDArray[Any]
Network = Callable[[list[Array]], list[Array]]

_WARM_UP_CALLS = 3
_FEWEST_SAMPLES = 10
_STEP_BYTES = 1 << 16


def main() -> None:
    """Answer requests until stdin ends. An answer is `{"result": …}` or `{"error": message}`."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": _ACTIONS[request.pop("action")](**request)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _open(path: str, threads: int) -> Network:
    return _open_onnx(path, threads) if _is_onnx(path) else _open_torch(path, threads)


def _is_onnx(path: str) -> bool:
    return path.endswith((".onnx", ".onnx.tar"))


@cache
def _unpacked(path: str) -> str:
    """The ONNX file of an archive that the engine wrote, beside its data in a folder of this process."""
    folder = tempfile.mkdtemp(prefix="onnx-")
    with tarfile.open(path) as archive:
        for member in archive:
            source = archive.extractfile(member)
            assert source is not None
            with open(os.path.join(folder, os.path.basename(member.name)), "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    return os.path.join(folder, os.path.basename(path).removesuffix(".tar"))


def _open_onnx(path: str, threads: int, optimized: str | None = None) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = optimized
    file = _unpacked(path) if path.endswith(".tar") else path
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def call(inputs: list[Array]) -> list[Array]:
        outputs: list[Array] = session.run(None, dict(zip(names, inputs, strict=True)))
        return outputs

    return call


def _open_torch(path: str, threads: int) -> Network:
    import torch
    from torch.utils import _pytree as pytree

    torch.set_num_threads(threads)
    network = _load(path).module()

    def call(inputs: list[Array]) -> list[Array]:
        with torch.no_grad():
            outputs = network(*(torch.from_numpy(value) for value in inputs))
        return [value.numpy() for value in pytree.tree_leaves(outputs) if value is not None]

    return call


def _load(path: str) -> Any:
    """The exported program in a `.pt2` file or a packed one."""
    import torch

    return torch.export.load(unpack(path) if path.endswith(".safetensors") else path)


def _runtime(path: str) -> str:
    if _is_onnx(path):
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"
    import torch

    return f"torch {torch.__version__}" + (", unpacked" if path.endswith(".safetensors") else "")


def _read(path: str) -> list[Array]:
    tensors = load_file(path)
    return [tensors[str(index)] for index in range(len(tensors))]


_opened: dict[tuple[str, int], Network] = {}


def _run(path: str, threads: int, inputs: str, outputs: str) -> str:
    """Run one batch; the outputs are written, the runtime's name and version come back."""
    if (path, threads) not in _opened:
        _opened[path, threads] = _open(path, threads)
    results = _opened[path, threads](_read(inputs))
    save_file({str(index): np.ascontiguousarray(value) for index, value in enumerate(results)}, outputs)
    return _runtime(path)


def _latency(paths: list[str], threads: int, inputs: str, samples: int, seconds: float) -> list[dict[str, Any]]:
    """Milliseconds of each call, the files taking turns, until each has `samples` or the time is up."""
    batch = _read(inputs)
    networks = [_open(path, threads) for path in paths]
    for network in networks:
        for _ in range(_WARM_UP_CALLS):
            network(batch)
    times: list[list[float]] = [[] for _ in paths]
    deadline = time.perf_counter() + seconds
    while len(times[0]) < samples and (len(times[0]) < _FEWEST_SAMPLES or time.perf_counter() < deadline):
        for network, mine in zip(networks, times, strict=True):
            began = time.perf_counter_ns()
            network(batch)
            mine.append((time.perf_counter_ns() - began) / 1e6)
    return [{"runtime": _runtime(path), "milliseconds": mine} for path, mine in zip(paths, times, strict=True)]


def _memory(path: str, threads: int, inputs: str) -> int:
    """Bytes by which opening the file and running one batch raises the largest resident size of a process.

    One forked for it: a program that is started inherits the largest size that its starter ever had, which for an
    engine is gigabytes. To be asked before this process has opened any file.
    """
    if not _is_onnx(path):
        _wake_torch()  # Here too, once for all files; in one thread, so that none is missing in what is forked.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "it was interrupted"
        try:
            answer = str(_raised_by(path, threads, inputs))
        except Exception as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    _, status = os.waitpid(child, 0)
    if not answer.isdigit():
        raise RuntimeError(answer or f"it died (exit status {os.waitstatus_to_exitcode(status)})")
    return int(answer)


def _raised_by(path: str, threads: int, inputs: str) -> int:
    """The inputs are loaded before, and the runtime has opened and run a network of one operator; weights, activations
    and the runtime's buffers count."""
    batch = _read(inputs)
    _wake_onnx() if _is_onnx(path) else _wake_torch()
    ballast = _fill_to_peak()
    before = _resident_peak()
    network = _open(path, threads)
    for _ in range(2):
        network(batch)
    peak = _resident_peak()
    ballast.close()
    return peak - before


def _wake_onnx() -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "one", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, {"x": np.zeros(1, np.float32)})


def _wake_torch() -> None:
    import io

    import torch

    torch.set_num_threads(1)
    torch.export.load(io.BytesIO(_trivial_program())).module()(torch.zeros(1, 8, 8, 8))


@cache
def _trivial_program() -> bytes:
    """A `.pt2` file."""
    import io

    import torch
    from torch import nn

    layers = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 8)).eval()
    file = io.BytesIO()
    torch.export.save(torch.export.export(layers, (torch.zeros(1, 8, 8, 8),)), file)
    return file.getvalue()


def _fill_to_peak() -> mmap.mmap:
    """Memory in use, just so much that the resident size is as large as it ever was: what is more from then on is new.

    Loading a runtime takes more for a moment than it keeps, and the kernel remembers that moment. (It would forget it
    on a write to /proc/self/clear_refs, which a sandbox does not allow.)
    """
    peak = _resident_peak()
    ballast = mmap.mmap(-1, peak + _STEP_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for start in range(0, peak, _STEP_BYTES):
        ballast[start : start + _STEP_BYTES] = b"x" * _STEP_BYTES
        if _resident_peak() > peak:
            break
    return ballast


def _resident_peak() -> int:
    """The largest resident size so far, in bytes (getrusage)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _digests(path: str, threads: int) -> dict[str, str]:
    """The SHA-256 of each weight's bytes, by its name."""
    import torch

    found = {}
    for name, tensor in _load(path).state_dict.items():
        content = tensor.detach().contiguous().flatten().view(torch.uint8)
        found[name] = hashlib.sha256(content.numpy().tobytes()).hexdigest()
    return found


def _census(path: str, threads: int, optimized: str) -> dict[str, Any]:
    """What ONNX Runtime made of the file: node counts, who computes with stored floats, and who computes in float on
    stored integers."""
    import onnx

    _open_onnx(path, threads, optimized)
    graph = onnx.load_model(optimized).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    unpacked = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in types}
    compute = [node for node in graph.node if node.op_type in _WEIGHTED and len(node.input) > 1]
    stored_floats = [node for node in compute if types.get(node.input[1]) == onnx.TensorProto.FLOAT]
    float_on_integers = [node.name or node.output[0] for node in compute if node.input[1] in unpacked]
    return {
        "operators": dict(Counter(node.op_type for node in graph.node)),
        "float_operators": dict(Counter(node.op_type for node in stored_floats)),
        "float_on_integers": float_on_integers,
    }


_WEIGHTED = (
    "Conv",
    "ConvTranspose",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "GRU",
    "Gemm",
    "LSTM",
    "MatMul",
    "RNN",
)
"""Operators whose second input is a weight."""


_ACTIONS: dict[str, Callable[..., Any]] = {
    "run": _run,
    "latency": _latency,
    "memory": _memory,
    "census": _census,
    "digests": _digests,
}


if __name__ == "__main__":
    main()
