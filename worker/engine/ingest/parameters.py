"""What must hold of a network's parameters, whatever file they came in."""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import Notice
from worker.engine.ingest.rejected import rejected


def check_parameters(values: dict[str, Tensor], parameters: frozenset[str], warnings: list[Notice]) -> None:
    """Raises `Failure` where there is nothing to compress or it was quantized; warns of numbers that are not finite."""
    integers = sorted(name for name, value in values.items() if value.dtype == torch.int8 and value.dim() >= 2)
    if integers:
        listed = ", ".join(integers[:5]) + (" …" if len(integers) > 5 else "")
        raise rejected(
            f"the network is quantized already: {listed} hold 8-bit integers, which are neither cut nor trained; "
            "send the network from before it was quantized"
        )
    if sum(values[name].numel() for name in parameters) == 0:
        raise Failure(Code.NOT_TRAINABLE, "the network has no parameters, so there is nothing to compress")
    broken = sorted(name for name in parameters if not bool(torch.isfinite(values[name]).all()))
    if broken:
        listed = ", ".join(broken[:5]) + (" …" if len(broken) > 5 else "")
        warnings.append(
            Notice(code="nonfinite_weights", message=f"{len(broken)} parameters hold NaN or infinity: {listed}.")
        )
