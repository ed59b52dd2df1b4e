"""What `make fuzz` found, each made as small as it goes; the tests read all of them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from onnx import TensorProto

from tests.engine.data.forms import picture
from tests.engine.ingest.named.checkpoints import safetensors_of, tensor_of
from tests.engine.ingest.onnx.test_refusals import linear
from tests.fuzz.seeds import tar, zipped

HUGE = (0, 2**31, 2**31, 2**31)
"""Sizes of an empty tensor whose strides are beyond 64 bits."""


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
)
