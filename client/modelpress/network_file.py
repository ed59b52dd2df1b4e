"""Networks to and from `.pt2` files. torch is imported when a function is called, never before."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, overload

from modelpress.job import MANIFEST, sha256_of
from modelpress.outcomes import DownloadError, PrepareError

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

    ExampleInputs = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


ARCHIVE, PACKED = ".pt2", ".safetensors"


@overload
def prepare(
    module: nn.Module | str | Path, example_inputs: ExampleInputs | None = None, path: None = None
) -> bytes: ...
@overload
def prepare(module: nn.Module | str | Path, example_inputs: ExampleInputs | None, path: str | Path) -> Path: ...
@overload
def prepare(
    module: nn.Module | str | Path, example_inputs: ExampleInputs | None = None, *, path: str | Path
) -> Path: ...
def prepare(
    module: nn.Module | str | Path, example_inputs: ExampleInputs | None = None, path: str | Path | None = None
) -> Path | bytes:
    """Export a network as the service reads it: eval mode, free batch size, no source lines, no samples of yours.

    `module` is any `nn.Module`, or a Hugging Face model's folder or name (then `example_inputs` may be left out).
    `example_inputs` is one tensor, a sequence of them, or a mapping from `forward`'s argument names; dimension 0 of
    each is the batch, of any size. The module itself is left as it was. Written to `path`, or returned as bytes.

    Raises PrepareError with the line that cannot be exported.
    """
    import torch
    from torch import nn

    from modelpress.export import export_program

    if isinstance(module, str | Path):
        from modelpress.hugging_face import load_pretrained

        module, dummy_inputs = load_pretrained(module)
        example_inputs = dummy_inputs if example_inputs is None else example_inputs
    if not isinstance(module, nn.Module):
        raise PrepareError(f"prepare() takes an nn.Module, not a {type(module).__name__}.")
    if example_inputs is None:
        raise PrepareError("prepare() needs example inputs: one batch, as forward() takes it.")
    program = export_program(module, example_inputs)

    target = None if path is None else Path(path)
    folder = None if target is None else target.parent
    handle, part = tempfile.mkstemp(prefix=".prepare-", suffix=".pt2", dir=folder)
    os.close(handle)
    try:
        torch.export.save(program, part)
        if target is None:
            return Path(part).read_bytes()
        Path(part).replace(target)
        return target
    finally:
        Path(part).unlink(missing_ok=True)


def load(folder: str | Path) -> nn.Module:
    """The network a job gave back, as an `nn.Module` that runs, trains and can be prepared and uploaded again.

    `folder` is one filled by `job.download` or `modelpress fetch`, or a `.pt2` or packed `.safetensors` file in it. The
    file is checked against the SHA-256 listed there and read with `torch.export.load`, which can run code: load only
    what came from a service you trust, as you would import a package. `train()` and `eval()` work; parameters keep
    their original names. The integer weights of a quantized network run but do not learn, and training fills in what
    was zero: to keep it so, train in a job.

    Raises DownloadError when there is no such file or it is not the one listed.
    """
    import torch

    file = _checked(Path(folder))
    source = _unpacked(file) if file.suffix == PACKED else file
    graph: fx.GraphModule = torch.export.load(source).module(check_guards=False)
    graph.train = MethodType(_set_training, graph)  # type: ignore[method-assign]
    graph.eval = MethodType(_set_eval, graph)  # type: ignore[method-assign]
    return _set_eval(graph)


def _unpacked(file: Path) -> io.BytesIO:
    from modelpress.unpack import unpack

    try:
        return unpack(file)
    except ValueError as error:
        raise DownloadError(f"{file}: {error}.") from error


def _checked(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    try:
        listed = json.loads((folder / MANIFEST).read_text())["artifacts"]
        digests = {entry["name"]: entry["sha256"] for entry in listed if entry["name"].endswith((ARCHIVE, PACKED))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{folder} has no {MANIFEST}: fetch the job again with `modelpress fetch`.") from error
    if path.is_dir():
        names = [name for name in digests if name.endswith(ARCHIVE)] or list(digests)
        if len(names) != 1:
            listed = ", ".join(names) or "none"
            raise DownloadError(
                f"{folder} should list one {ARCHIVE} or {PACKED} file and lists {listed}; name the file to load."
            )
        path = folder / names[0]
    if path.name not in digests:
        raise DownloadError(f"{path.name} is not listed in {folder / MANIFEST}.")
    if not path.is_file() or sha256_of(path) != digests[path.name]:
        raise DownloadError(f"{path} is missing or is not the file the job gave: fetch it again.")
    return path


_TRAINING_ARGUMENT = {"aten.batch_norm.default": 5, "aten.dropout.default": 2}
"""Where the operators of an exported graph carry `training`; an export bakes in the value of eval mode."""


def _set_training(graph: fx.GraphModule, mode: bool = True) -> fx.GraphModule:
    for node in graph.graph.nodes:
        position = _TRAINING_ARGUMENT.get(str(node.target)) if node.op == "call_function" else None
        if position is not None:
            node.update_arg(position, mode)
    graph.recompile()
    for module in graph.modules():
        module.training = mode
    return graph


def _set_eval(graph: fx.GraphModule) -> fx.GraphModule:
    return _set_training(graph, False)
