"""The network inside the engine: what every step takes, changes and hands on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from models.inspection import TensorInfo
from worker.engine.graph.coded import Coded
from worker.engine.graph.copies import sharing_copy
from worker.engine.graph.integer import Quantization, integer_network
from worker.engine.graph.stored import Stored

BESIDE = "learnt_beside"
"""A submodule that a network has while it is trained: parameters that learn with it and are no part of it."""


@dataclass(frozen=True)
class Record:
    """What a step did, enough to do it again on the original without thinking: `replay` of its `step.py` reads it.

    `tensors` are what JSON cannot hold (indices of removed units, ranges …).
    """

    step: str
    data: dict[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors_of(self, name: str) -> dict[str, Tensor]:
        """Those that are kept as `name/…`, by what follows."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class StepState:
    """The middle of a step, enough to go on from it to the same bytes: `data` is JSON, `tensors` the rest."""

    data: dict[str, Any]
    tensors: Mapping[str, Tensor]


@dataclass
class Subject:
    """`graph` is the lifted network (real `nn` modules, eval mode) that steps change in place.

    `original` is an untouched copy: the teacher, the mask check's other side, the report's "before".
    `inputs` and `outputs` name the tensors in call order; a `None` size may vary and dimension 0 is the batch.
    `renames` maps parameter names of the uploaded file to names in `graph`, where they differ.
    `quantization` is set by the quantize step: which values of `graph` (then folded, its weights on their 8-bit
    grid) are integers, and how.
    `coded` are the weights that files hold as codes, by the name of a parameter of `graph`, whose values are exactly
    what they say; `coded_sqnr_db` is the noise that this adds to the output of each such layer, where it was measured.
    `stored` are the weights that files hold in fewer bytes, by the name of a parameter of `graph`, whose values are
    exactly what they say.
    `masks` are the weights that stay zero: by the name of a parameter of `graph` a bool tensor of its shape, true where
    it may be anything. Whatever changes weights leaves the others zero; whatever changes shapes changes the masks too.
    """

    graph: fx.GraphModule
    original: fx.GraphModule
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    records: list[Record] = field(default_factory=list)
    quantization: Quantization | None = None
    coded: dict[str, Coded] = field(default_factory=dict)
    coded_sqnr_db: dict[str, float] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)
    stored_sqnr_db: dict[str, float] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    renames: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: fx.GraphModule, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...]) -> Subject:
        """A subject whose `original` has the memory of `graph`'s tensors, which may be that of a file, and whose own
        `graph` is a copy."""
        graph.eval()
        original = sharing_copy(graph)
        original.requires_grad_(False)
        return cls(copy.deepcopy(graph), original, inputs, outputs)

    def network(self) -> fx.GraphModule:
        """What is delivered: `graph`, or what it computes in 8-bit integers once it is quantized (built anew)."""
        return self.graph if self.quantization is None else integer_network(self.graph, self.quantization)

    def example_inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs, `batch` samples: normal for floats, zeros and ones for integers (always valid indices)."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(_example(info, batch, generator) for info in self.inputs)


def _example(info: TensorInfo, batch: int, generator: torch.Generator) -> Tensor:
    shape = [batch if i == 0 and size is None else size or 1 for i, size in enumerate(info.shape)]
    dtype: torch.dtype = getattr(torch, info.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
