"""Small ONNX graphs, and the comparison of what is read with what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from models.reading import ReadOptions
from worker.engine.graph.lift import lift
from worker.engine.ingest.program import Program
from worker.engine.ingest.read import read_network
from worker.engine.subject import Subject

BATCHES = (2, 3, 5)
Array = npt.NDArray[Any]
KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.bool_): TensorProto.BOOL,
}
Shape = Sequence["int | str | None"]


def random(*sizes: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(sizes).astype(np.float32)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Shape | tuple[int, Shape]],
    outputs: Sequence[str],
    weights: Mapping[str, Array] = {},
    *,
    opset: int = 17,
    **changes: Any,
) -> ModelProto:
    """A graph of these nodes; an input is a shape of floats, or an element type and a shape."""
    given = []
    for name, wanted in inputs.items():
        kind, shape = (
            wanted if isinstance(wanted, tuple) and isinstance(wanted[1], list) else (TensorProto.FLOAT, wanted)
        )
        given.append(helper.make_tensor_value_info(name, kind, shape))
    graph = helper.make_graph(
        list(nodes),
        "graph",
        given,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **changes)


def with_parameters(
    node: NodeProto, inputs: Mapping[str, Any], weights: Mapping[str, Array] = {}, *, opset: int = 17
) -> ModelProto:
    """A graph of one node, beside a linear layer of its own, so that there is something to train."""
    outputs = [name for name in node.output if name]
    side = helper.make_node("MatMul", ["side", "linear.weight"], ["beside"], "linear")
    return model(
        [node, side],
        {**inputs, "side": ["N", 3]},
        [*outputs, "beside"],
        {**weights, "linear.weight": random(3, 2)},
        opset=opset,
    )


def read(network: ModelProto, folder: Path, options: ReadOptions | None = None) -> tuple[Program, Subject]:
    path = folder / "network.onnx"
    path.write_bytes(network.SerializeToString())
    program = read_network(path, options or ReadOptions())
    return program, lift(program)


def compare(
    network: ModelProto | Path,
    subject: Subject,
    high: int = 2,
    tolerance: float = 1e-5,
    batches: Sequence[int] = BATCHES,
) -> None:
    """Outputs equal those of ONNX Runtime, relative to their size; integers of the inputs are below `high`."""
    content = network.read_bytes() if isinstance(network, Path) else network.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for batch in batches:
        inputs = random_inputs(subject, batch, high)
        wanted = session.run(None, dict(zip(names, [value.numpy() for value in inputs], strict=True)))
        with torch.no_grad():
            found = subject.graph(*inputs)
        for have, want in zip(found if isinstance(found, tuple) else (found,), wanted, strict=True):
            assert tuple(have.shape) == want.shape
            assert str(have.dtype).removeprefix("torch.") == str(want.dtype)
            scale = max(1.0, float(np.abs(want).max())) if want.size else 1.0
            np.testing.assert_allclose(have.numpy() / scale, want / scale, rtol=0, atol=tolerance)


def random_inputs(subject: Subject, batch: int, high: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    values = []
    for info in subject.inputs:
        shape = [batch if place == 0 else size or 1 for place, size in enumerate(info.shape)]
        dtype: torch.dtype = getattr(torch, info.dtype)
        if dtype.is_floating_point:
            values.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            values.append(torch.randint(0, high, shape, generator=generator).to(dtype))
    return tuple(values)


def fp(value: float) -> Array:
    return np.array(value, np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)
