"""A convolutional, an attention and a recurrent network, as small as a chain of steps can do with; and their data."""

# mypy: disable-error-code="no-any-return"
from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.networks import ViTBlock, export_pt2, randomised


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.block, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.widen = nn.Conv2d(16, 32, 3, 2, 1)
        self.mix = nn.Conv2d(32, 32, 1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.enter(x)))
        x = torch.relu(self.bn2(self.block(x)) + x)
        return self.fc(torch.relu(self.mix(torch.relu(self.widen(x)))).mean((2, 3)))


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(12, 32)
        self.block = ViTBlock(32, 4)
        self.norm = nn.LayerNorm(32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.block(self.enter(x))).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.between = nn.Linear(24, 32)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.embedding(x))
        return self.fc(torch.relu(self.between(y[:, -1])))


SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutional": (Convolutional, (3, 12, 12)),
    "attentive": (Attentive, (6, 12)),
    "recurrent": (Recurrent, (8,)),
}
"""The network, and one sample of what it reads; a row of numbers are tokens."""


def write(name: str, folder: Path, samples: int = 160) -> tuple[Path, Path]:
    """The network as `.pt2`, and data that it labelled itself."""
    make, shape = SHAPES[name]
    torch.manual_seed(0)
    module = randomised(make())
    generator = torch.Generator().manual_seed(1)
    values = (
        torch.randn(samples, *shape, generator=generator)
        if len(shape) > 1
        else torch.randint(1, 40, (samples, *shape), generator=generator)
    )
    with torch.no_grad():
        scores = module(values)
    (argument,) = inspect.signature(module.forward).parameters
    arrays: dict[str, Any] = {argument: values.numpy(), "y": (scores - scores.mean(0)).argmax(1).numpy()}
    np.savez(folder / "data.npz", **arrays)
    return export_pt2(module, (values[:2],), folder / "network.pt2"), folder / "data.npz"
