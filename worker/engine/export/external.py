"""An ONNX graph as a file: one up to protobuf's limit, above it a tar archive of the graph and the file with its
weights, which `modelpress upload` takes as it is."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

import onnx

LARGEST_BYTES = (2 << 30) - (16 << 20)
"""Protobuf's limit, less room for the graph."""
_SMALL = 1024
"""Tensors of fewer bytes stay in the graph: shapes and the like, which runtimes look at before they load weights."""


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write `model` to `path` or, where that cannot hold it, to `archive_of(path)`; `model` is of no use then. The
    weights are on disk twice for a moment."""
    archive_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) <= LARGEST_BYTES:
        onnx.save_model(model, path)
        return
    with tempfile.TemporaryDirectory(prefix="external-", dir=path.parent) as folder:
        graph, data = Path(folder) / path.name, Path(folder) / f"{path.name}.data"
        onnx.save_model(model, graph, save_as_external_data=True, location=data.name, size_threshold=_SMALL)
        with tarfile.open(archive_of(path), "w", format=tarfile.GNU_FORMAT) as archive:
            for file in (graph, data):
                archive.add(file, arcname=file.name, filter=_without_origin)


def archive_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.tar")


def written(path: Path) -> Path:
    """The file that an export to `path` left."""
    return archive_of(path) if archive_of(path).exists() else path


def _without_origin(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """No time, owner or mode of this machine."""
    plain = tarfile.TarInfo(member.name)
    plain.size, plain.mode = member.size, 0o644
    return plain
