"""Which sizes of a file's inputs stay open."""

from __future__ import annotations

from typing import Any

import torch

from worker.engine.subject import Subject


def dynamic_shapes(subject: Subject) -> tuple[dict[int, Any], ...]:
    """For `torch.export`: every size that may vary in `subject` may vary in the file."""
    return tuple(
        {index: torch.export.Dim.AUTO for index, size in enumerate(info.shape) if size is None}
        for info in subject.inputs
    )
