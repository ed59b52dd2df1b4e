"""torchvision, which transformers and timm import, beside a torch build that its operators do not load into."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

_KEPT: list[Any] = []


def declare() -> None:
    """Declare the two operators whose absence stops `import torchvision`; does nothing where they load."""
    if _KEPT or importlib.util.find_spec("torchvision") is None:
        return
    if torch.__version__.endswith("+cpu"):
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
