"""torchvision, which timm and transformers import, beside a torch build that its compiled operators do not load into.

The public torchvision wheel is built for CUDA. Next to a CPU-only torch its library is skipped, and the import then
stops at the first operator it wants to describe: it is enough that the two named here have a schema.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@functools.cache
def make_importable() -> object:
    """Declare the operators where torchvision's library does not bring them. Call before timm or transformers."""
    if importlib.util.find_spec("torchvision") is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)
    return library
