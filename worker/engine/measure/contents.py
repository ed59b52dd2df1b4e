"""Where the bytes of a finished file are: by layer and by the type they are stored as, adding up to its size."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx
from onnx import helper

from models.report import Content
from worker.engine.ingest.weights import DTYPES
from worker.engine.measure.unpack import Packed

REST = "graph"
"""Shown as the type of what is no value of the network: nodes, names, headers, padding."""

_Stored = tuple[str, str, int]
"""Name of a tensor, type, bytes."""


def contents(path: Path, layers: Collection[str]) -> list[Content]:
    """Of a file of `EXPORTERS`, by its ending. A tensor belongs to the layer whose name its own begins with."""
    read = {".onnx": _onnx, ".tar": _onnx, ".pt2": _pt2, ".safetensors": _packed}[path.suffix]
    found: Counter[tuple[str | None, str]] = Counter()
    for name, dtype, size in read(path):
        found[_owner(name, layers), dtype] += size
    rest = path.stat().st_size - found.total()
    rows = [Content(layer=layer, dtype=dtype, size_bytes=size) for (layer, dtype), size in found.items() if size]
    return [*rows, Content(layer=None, dtype=REST, size_bytes=rest)]


def layers_of(names: Collection[str]) -> set[str]:
    """The layers that own the parameters and buffers called `names`; one of no layer is its own."""
    return {name.rpartition(".")[0] or name for name in names}


def _owner(name: str, layers: Collection[str]) -> str | None:
    """The longest of `layers` that `name` begins with, up to a dot or an underscore."""
    for end in range(len(name), 0, -1):
        if (end == len(name) or name[end] in "._") and name[:end] in layers:
            return name[:end]
    return None


def operators_of_one_runtime(path: Path) -> list[str]:
    """The operators of an ONNX file, or archive of one, that are no standard ones."""
    return sorted({node.op_type for node in _graph(path).node if node.domain not in ("", "ai.onnx")})


def _graph(path: Path) -> onnx.GraphProto:
    if path.suffix != ".tar":
        return onnx.load_model(path, load_external_data=False).graph
    with tarfile.open(path) as archive:
        file = archive.extractfile(path.stem)
        assert file is not None
        return onnx.load_model_from_string(file.read()).graph


def _onnx(path: Path) -> Iterator[_Stored]:
    graph = _graph(path)
    tensors = [*graph.initializer, *(part.t for node in graph.node for part in node.attribute if part.HasField("t"))]
    for tensor in tensors:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        outside = {entry.key: entry.value for entry in tensor.external_data}
        inside = len(tensor.raw_data) if tensor.HasField("raw_data") else tensor.ByteSize()
        yield tensor.name, dtype, int(outside.get("length", inside))


def _pt2(path: Path) -> Iterator[_Stored]:
    with zipfile.ZipFile(path) as archive:
        for configuration in archive.namelist():
            if not configuration.endswith(("weights_config.json", "constants_config.json")):
                continue
            folder = configuration.rpartition("/")[0]
            files: dict[str, tuple[str, str]] = {}
            for name, row in json.loads(archive.read(configuration))["config"].items():
                if row.get("tensor_meta") is not None:
                    files.setdefault(row["path_name"], (name, _dtype(row["tensor_meta"]["dtype"])))
            for file, (name, dtype) in files.items():
                yield name, dtype, archive.getinfo(f"{folder}/{file}").compress_size


def _packed(path: Path) -> Iterator[_Stored]:
    """A weight that is not stored as it was has its codec as the type."""
    for row, parts in Packed(path).weights():
        dtype = row.get("codec") or ("deflated" if "planes" in row else row["dtype"])
        for content in parts.values():
            yield row["name"], dtype, content.nbytes


def _dtype(number: int) -> str:
    return str(DTYPES[number]).removeprefix("torch.") if number in DTYPES else f"type {number}"
