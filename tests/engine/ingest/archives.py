"""A good `.pt2` taken apart, so that a test can change one thing and put it together again."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.networks import export_pt2, randomised

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Small(nn.Module):
    """A convolution, BatchNorm, a linear layer, and a table that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("table", torch.tensor([0.5, 2.0]), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu_(self.bn(self.conv(image))).mean((2, 3))
        logits: Tensor = self.fc(x) * self.table.to(torch.float32)
        return logits


@functools.cache
def _good() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = export_pt2(randomised(Small()), (torch.randn(2, 3, 8, 8),), Path(folder) / "small.pt2")
        return path.read_bytes()


@dataclass
class Archive:
    """Members by name without the root folder. `program`, `weights` and `constants` are the parsed JSON."""

    root: str
    members: dict[str, bytes]
    program: Any
    weights: Any
    constants: Any
    compression: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, content: bytes) -> Archive:
        """Take a file apart."""
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            root = file.namelist()[0].split("/")[0]
            members = {name.removeprefix(f"{root}/"): file.read(name) for name in file.namelist()}
        documents = [json.loads(members[name]) for name in (GRAPH, WEIGHTS, CONSTANTS)]
        return cls(root, members, *documents)

    @property
    def graph(self) -> Any:
        return self.program["graph_module"]["graph"]

    @property
    def signature(self) -> Any:
        return self.program["graph_module"]["signature"]

    def node(self, target: str) -> Any:
        """The first node whose target ends in `target`."""
        return next(node for node in self.graph["nodes"] if node["target"].endswith(target))

    def write(self, path: Path) -> Path:
        """Put the file together, members stored."""
        documents = {GRAPH: self.program, WEIGHTS: self.weights, CONSTANTS: self.constants}
        with zipfile.ZipFile(path, "w") as file:
            for name, content in self.members.items():
                if name in documents and documents[name] is not None:
                    content = json.dumps(documents[name]).encode()
                file.writestr(f"{self.root}/{name}", content, self.compression.get(name, zipfile.ZIP_STORED))
        return path


def good_archive() -> Archive:
    """A fresh copy of the good file's parts."""
    return Archive.of(_good())


def good_file(path: Path) -> Path:
    """The good file as torch wrote it."""
    path.write_bytes(_good())
    return path
