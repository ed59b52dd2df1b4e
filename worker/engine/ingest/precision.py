"""Networks whose parameters are not float32 are compressed in float32.

Training in half precision needs a scaled loss and a master copy, and importance scores of small weights underflow in
it, so a copy in float32 is what is worked on. Only the element types that the parameters have are widened: a float32
network that converts a value to another type on its way goes on doing so.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.inspection import Notice
from worker.engine.ingest.weights import Tensors


def in_single_precision(tensors: Tensors) -> tuple[Tensors, frozenset[torch.dtype]]:
    """All tensors of the parameters' element types as float32, shared ones still shared; and which types these were."""
    widened = frozenset(tensors.values[name].dtype for name in tensors.parameters) - {torch.float32}
    if not widened:
        return tensors, widened
    made: dict[int, Tensor] = {}
    values = {name: made.setdefault(id(value), _single(value, widened)) for name, value in tensors.values.items()}
    return replace(tensors, values=values), widened


def _single(tensor: Tensor, widened: frozenset[torch.dtype]) -> Tensor:
    if tensor.dtype not in widened:
        return tensor
    single = tensor.detach().to(torch.float32)
    return nn.Parameter(single, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else single


def precision_notice(widened: frozenset[torch.dtype]) -> list[Notice]:
    """What to say about element types that were widened, if there were any."""
    if not widened:
        return []
    kinds = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in widened))
    message = (
        f"The file holds {kinds} numbers. The network is compressed, measured and delivered in float32: its inputs are "
        "float32, and sizes before and after are those of float32."
    )
    return [Notice(code="converted_to_float32", message=message)]
