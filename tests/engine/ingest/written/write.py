"""Writes the files beside this one, by the torch that runs it; `python write.py FOLDER` in an environment of that torch
and numpy alone. Each has the network's outputs for its inputs with it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Convolutions(nn.Module):
    """A residual block, a depthwise convolution and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 8, 1)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu_(self.norm(self.stem(image)))
        x = x + self.second(F.hardswish(self.first(x)))
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        scores: Tensor = self.head(F.max_pool2d(x, 2).mean((2, 3)))
        return scores


class Attention(nn.Module):
    """Attention over tokens whose embedding is the head's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.positions = nn.Parameter(torch.randn(6, 8))
        self.norm = nn.LayerNorm(8)
        self.joint = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens) + self.positions
        split = self.joint(self.norm(x)).reshape(x.shape[0], 6, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2])
        x = x + self.out(mixed.transpose(1, 2).flatten(2)) * self.scale
        return {"logits": self.head(x), "pooled": x.mean(1)}


class Recurrent(nn.Module):
    """An LSTM in both directions, and a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, steps: Tensor) -> Tensor:
        scores: Tensor = self.head(self.gru(self.lstm(steps)[0])[0][:, -1])
        return scores


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolutions": (Convolutions, lambda: torch.randn(3, 3, 8, 8)),
    "attention": (Attention, lambda: torch.randint(0, 16, (3, 6))),
    "recurrent": (Recurrent, lambda: torch.randn(3, 7, 4)),
}


def main() -> None:
    version = torch.__version__.partition("+")[0]
    folder = Path(sys.argv[1])
    for name, (build, draw) in NETWORKS.items():
        torch.manual_seed(0)
        network, inputs = build().train(), draw()
        with torch.no_grad():
            if inputs.is_floating_point():
                network(inputs)  # Statistics of BatchNorm that are not those of a new one.
        network.eval()
        dynamic = ({0: torch.export.Dim("batch", min=2, max=64)},)
        program = torch.export.export(network, (inputs,), dynamic_shapes=dynamic)
        path = folder / f"{name}-{version}.pt2"
        torch.export.save(program, str(path))
        with torch.no_grad():
            outputs = network(inputs)
        outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
        arrays = {"inputs": inputs.numpy()} | {f"output{i}": value.numpy() for i, value in enumerate(outputs)}
        np.savez_compressed(str(path.with_suffix(".npz")), **arrays)


if __name__ == "__main__":
    main()
