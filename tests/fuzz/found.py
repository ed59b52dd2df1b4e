"""What `make fuzz` found, each made as small as it goes; the tests read all of them again."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import ModelProto, TensorProto, helper

from tests.engine.data.forms import picture
from tests.engine.ingest.named.checkpoints import safetensors_of, tensor_of
from tests.engine.ingest.onnx.graphs import Shape, model
from tests.engine.ingest.onnx.test_operators import recurrent_network
from tests.engine.ingest.onnx.test_refusals import linear
from tests.fuzz.seeds import tar, zipped

HUGE = (0, 2**31, 2**31, 2**31)
"""Sizes of an empty tensor whose strides are beyond 64 bits."""
FOUR = np.array([1, 2, 3, 4], np.float32)


@dataclass(frozen=True)
class Found:
    """`make` gives a file that the reader of `target` once had no answer to; `says` is in the refusal, None where it is
    read."""

    name: str
    target: str
    says: str | None
    make: Callable[[], bytes]


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _empty_onnx() -> bytes:
    network = linear()
    network.graph.initializer.append(TensorProto(name="huge", data_type=TensorProto.FLOAT, dims=HUGE))
    return bytes(network.SerializeToString())


def _odd_classes() -> bytes:
    """Of samples in a WebDataset."""
    members = {f"{row}.json": json.dumps({"label": "\ud800\0" * row}).encode() for row in range(4)}
    return tar({**members, **{f"{row}.png": picture(row) for row in range(4)}})


def _long_sequence(steps: int) -> bytes:
    network = recurrent_network("lstm", True, 22)
    network.graph.input[0].type.tensor_type.shape.dim[1].dim_value = steps
    return bytes(network.SerializeToString())


def _of_images(operator: str, sizes: list[int], *more: str, weights: Any = None, **attributes: Any) -> bytes:
    node = helper.make_node(operator, ["x", *more], ["y"], "part", **attributes)
    network: ModelProto = model([node], {"x": ["N", 4, *sizes]}, ["y"], weights or {}, opset=19)
    return bytes(network.SerializeToString())


def _resized(sizes: list[int], mode: str) -> bytes:
    scales = {"s": np.array([1, 1, 0.5, 1.7], np.float32)}
    given: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "asymmetric"}
    if mode == "nearest":
        given["nearest_mode"] = "round_prefer_ceil"
    return _of_images("Resize", sizes, "", "s", weights=scales, **given)


def _places_of(coordinates: int) -> bytes:
    node = helper.make_node("GatherND", ["x", "i"], ["y"], "part")
    places: Shape = ["N", 3, coordinates]
    network: ModelProto = model([node], {"x": ["N", 4, 5], "i": (TensorProto.INT64, places)}, ["y"])
    return bytes(network.SerializeToString())


def _chunk_without_checksum() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        dataset = file.create_dataset("x", (4, 3), "f4", chunks=(4, 3), fletcher32=True)
        dataset.id.write_direct_chunk((0, 0), b"\0\0")
    return buffer.getvalue()


def _states_of_many() -> bytes:
    network = recurrent_network("lstm", True, 22)
    network.graph.node[0].op_type = "Identity"
    del network.graph.node[0].attribute[:]
    network.graph.node[3].input[5] = network.graph.node[3].input[6] = ""
    network.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**33
    return bytes(network.SerializeToString())


def _places_beyond() -> bytes:
    """Floats that are cut to whole numbers: those of two samples happen to be places, those of others are not."""
    nodes = [helper.make_node("GatherND", ["x", "i"], ["y"]), helper.make_node("MatMul", ["side", "w"], ["z"])]
    inputs: dict[str, Shape] = {"x": ["N", 1, 5], "i": ["N", 3, 2], "side": ["N", 3]}
    network: ModelProto = model(nodes, inputs, ["y", "z"], {"w": np.ones((3, 2), np.float32)})
    return bytes(network.SerializeToString())


def _texts_without_end() -> bytes:
    """The first object in the heap of an HDF5 file is free, and has no size."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file["x"], file["split"] = np.zeros((4, 2), np.float32), ["train", "val"] * 2
    content = buffer.getvalue()
    first = content.index(b"GCOL") + 16
    return content[:first] + struct.pack("<HHIQ", 0, 0, 0, 0) + content[first + 16 :]


def _images_in_images() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": pa.array([{"bytes": {"bytes": picture(1)}}] * 4)}), buffer)
    return buffer.getvalue()


def _other_statistics() -> bytes:
    """A column that may lack values becomes one that may not, and its statistics are of another size then."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"x": pa.array([1.0, 2.0, 3.0])}), buffer, store_schema=False)
    before, optional, after = buffer.getvalue().rpartition(b"\x25\x02\x18\x01x")
    assert optional
    return before + b"\x25\x00\x18\x01x" + after


FOUND: tuple[Found, ...] = (
    Found("npy header without an end", "npz", "header that cannot be read", lambda: npy(b"{'descr': '<f4', (\n")),
    Found("a class called by half a surrogate", "tar", None, _odd_classes),
    Found(
        "empty and beyond 64 bits",
        "safetensors",
        "is empty but claims",
        lambda: safetensors_of({"x": {"dtype": "F32", "shape": HUGE, "data_offsets": [0, 0]}}),
    ),
    Found(
        "empty and beyond 64 bits in a file of torch.save",
        "pth",
        "is empty but claims",
        lambda: tensor_of(b"torch\nFloatStorage", 2, HUGE, (1, 1, 1, 1)),
    ),
    Found("empty and beyond 64 bits in ONNX", "onnx", "is empty but claims", _empty_onnx),
    Found("member without a name", "zip", "has no name", lambda: zipped({"x": b""}, 0).replace(b"x", b"\0")),
    Found(
        "stride beyond 64 bits",
        "pth",
        "sizes or strides that are none",
        lambda: tensor_of(b"torch\nFloatStorage", 2, (1,), (2**80,)),
    ),
    Found("recurrent layer over a long sequence", "onnx", None, lambda: _long_sequence(200_000)),
    Found("recurrent layer over an endless sequence", "onnx", "more than", lambda: _long_sequence(2**33)),
    Found("resizing by a matrix of gigabytes", "onnx", "takes a matrix", lambda: _resized([32769, 6], "linear")),
    Found("resizing to billions", "onnx", "is the most along", lambda: _resized([2**31 - 1, 6], "nearest")),
    Found(
        "pooling over billions",
        "onnx",
        "count differently",
        lambda: _of_images("AveragePool", [7, 2**32], auto_pad="SAME_LOWER", kernel_shape=[3, 3], strides=[2, 2]),
    ),
    Found(
        "more coordinates than dimensions",
        "onnx",
        "coordinates in 3",
        lambda: _places_of(2**31 - 1),
    ),
    Found("the largest of a thousand billions", "onnx", "GiB", lambda: _of_images("Hardmax", [2**40 - 1], axis=2)),
    Found(
        "transposed convolution that is mostly gaps",
        "onnx",
        "leaves gaps",
        lambda: _of_images(
            "ConvTranspose", [7, 6], "w", weights={"w": np.zeros((4, 3, 3, 3), np.float32)}, strides=[32768, 2]
        ),
    ),
    Found("states for billions of samples", "onnx", "GiB", _states_of_many),
    Found(
        "every second of billions, from the end",
        "onnx",
        "GiB",
        lambda: _of_images(
            "Slice",
            [7, 2**32 - 2],
            *("from", "to", "axes", "steps"),
            weights={
                name: np.array([value])
                for name, value in zip(("from", "to", "axes", "steps"), (-2, 0, 3, -2), strict=True)
            },
        ),
    ),
    Found(
        "a thousand billions of parts",
        "onnx",
        "makes 1099511627776 parts",
        lambda: _of_images("Split", [7, 6], axis=2, num_outputs=2**40),
    ),
    Found("places that are none in a smaller batch", "onnx", "do not run", _places_beyond),
    Found(
        "normalising one element",
        "onnx",
        "do not run",
        lambda: _of_images("InstanceNormalization", [1], "s", "b", weights={"s": FOUR, "b": FOUR}, epsilon=1e-3),
    ),
    Found("checksum of an empty chunk", "hdf5", "no checksum", _chunk_without_checksum),
    Found("heap of texts without an end", "hdf5", "not where it should be", _texts_without_end),
    Found("statistics of another column", "parquet", "cannot be read", _other_statistics),
    Found("images in images", "parquet", "is struct", _images_in_images),
)
