"""A network that a library built and the file filled, and its way to a `.pt2` that our own reader reads."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection

from models.inspection import Notice
from worker.engine.ingest.rejected import rejected

_TORCH = str(Path(torch.__file__).parent)
MAXIMUM_BUFFER_BYTES = 1 << 30
"""Of what a network computes from its settings and does not store: position tables, attention masks."""
MAXIMUM_SAMPLE_BYTES = 256 << 20
_BATCH = 7
"""Of the export's example: unlike the sizes that networks have, so that none is taken for it."""


@dataclass(frozen=True)
class Built:
    """`module` in eval mode; `inputs` by name, in order: shape with the batch, which stays free, and dtype.

    With `outputs`, `forward` gives a mapping of which these are kept.
    """

    module: nn.Module
    inputs: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    notices: tuple[Notice, ...] = ()
    outputs: tuple[str, ...] = ()


def refuse_buffers(planned: nn.Module) -> None:
    """Of a network on the meta device, before it is made. Raises `Failure` (network_rejected)."""
    stored = set(planned.state_dict())
    size = sum(b.numel() * b.element_size() for name, b in planned.named_buffers() if name not in stored)
    if size > MAXIMUM_BUFFER_BYTES:
        raise rejected(f"the network needs tables of {size} bytes for this input; {MAXIMUM_BUFFER_BYTES} are allowed")


def export(built: Built, title: str, path: Path) -> None:
    """Write the network as a `.pt2`. Nothing is computed: torch traces it on shapes alone.

    Raises `Failure` (network_rejected) where torch cannot export it.
    """
    for name, (shape, dtype) in built.inputs.items():
        if math.prod(shape[1:]) * dtype.itemsize > MAXIMUM_SAMPLE_BYTES:
            raise rejected(f"a sample of {name} {list(shape)} has more than {MAXIMUM_SAMPLE_BYTES >> 20} MiB")
    module = built.module.requires_grad_(True)
    inputs = tuple(torch.zeros(_BATCH, *shape[1:], dtype=dtype) for shape, dtype in built.inputs.values())
    if built.outputs:
        module.forward = _forward(module, tuple(built.inputs), built.outputs)
    free_batch: Any = ShapesCollection()  # type: ignore[no-untyped-call]
    for value in inputs:
        free_batch[value] = {0: Dim.AUTO}
    with _quiet():
        try:
            program = torch.export.export(module, inputs, dynamic_shapes=free_batch)
        except Exception as error:  # torch.export raises anything, from its own errors to those of the network's code
            raise rejected(f"{title} cannot be exported for inputs of {_shapes(built)}: {_reason(error)}") from error
        program.example_inputs = None
        torch.export.save(program, path)


def _forward(module: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...]) -> Any:
    """Takes the inputs by position, gives only tensors; torch.export names the inputs after the arguments."""
    given = module.forward

    def forward(*values: Tensor) -> dict[str, Tensor]:
        result = given(**dict(zip(names, values, strict=True)), return_dict=True)
        return {name: result[name] for name in outputs}

    arguments = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    return forward


def _reason(error: Exception) -> str:
    """The first line of what it says, or else the network's own line that led to it."""
    said = next(iter(str(error).strip().splitlines()), "")
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_TORCH)]
    return said[:300] or f"{type(error).__name__} at `{lines[-1]}`"[:300]


def _shapes(built: Built) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, (shape, _) in built.inputs.items())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export logs and prints whole graphs when it fails; the failure says it in a line."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
