"""Networks written by torch's two ONNX exporters."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Exporter = Literal["dynamo", "torchscript"]


def export_onnx(
    module: nn.Module,
    args: tuple[Tensor, ...],
    path: Path,
    exporter: Exporter,
    *,
    fixed: bool = False,
    **options: Any,
) -> Path:
    """Write `module` in eval mode; `fixed` for the batch of the example only."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            shapes = None if fixed else tuple({0: torch.export.Dim("batch", min=1)} for _ in args)
            chosen = {"external_data": False, **options}
            torch.onnx.export(module.eval(), args, path, dynamo=True, dynamic_shapes=shapes, **chosen)
        else:
            names = [f"input{place}" for place in range(len(args))]
            axes = None if fixed else {name: {0: "batch"} for name in names}
            torch.onnx.export(
                module.eval(),
                args,
                str(path),
                dynamo=False,
                input_names=names,
                dynamic_axes=axes,
                opset_version=14,
                **options,
            )
    return path
