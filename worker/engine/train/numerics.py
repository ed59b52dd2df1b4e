"""In which precision and layout steps are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from models.spec_speed import Precision
from worker.engine.data.dataset import Batch


@dataclass(frozen=True)
class Numerics:
    """As in `models/spec_speed.py`, with nothing left to measure."""

    precision: Precision = "float32"
    channels_last: bool = False
    cudnn_autotune: bool = False

    @contextmanager
    def in_force(self, network: nn.Module) -> Iterator[None]:
        """Inside the block products are as precise as asked, and the network is laid out so; then as before."""
        cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark
        cudnn.allow_tf32 = products.allow_tf32 = self.precision == "tf32"
        cudnn.benchmark = self.cudnn_autotune
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            yield
        finally:
            cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = before
            if self.channels_last:
                network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        kind = torch.float16 if self.precision == "float16" else torch.bfloat16
        on = self.precision in ("float16", "bfloat16")
        return torch.autocast(device.type, kind, enabled=on)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler | None:
        """What keeps gradients in the range of float16; nothing else needs it."""
        return torch.amp.GradScaler(device.type) if self.precision == "float16" else None

    def laid_out(self, batch: Batch) -> Batch:
        """Images in the network's layout."""
        if not self.channels_last:
            return batch
        inputs = tuple(
            value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value for value in batch.inputs
        )
        return replace(batch, inputs=inputs)

    def __str__(self) -> str:
        parts: list[str] = [self.precision]
        parts += ["channels last"] if self.channels_last else []
        return ", ".join(parts + (["cuDNN autotune"] if self.cudnn_autotune else []))


USUAL = Numerics()
