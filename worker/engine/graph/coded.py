"""Weights stored as codes and tables: what a `quantize` step of few bits decides, and every file that holds them.

A weight of a grid is `(spacing * code - offset - zero) * scale`, with one scale, and one zero where there are any, for
each group of a row; integers, ternary and binary weights are grids. A weight of a codebook is a place in a table whose
entries are `dimension` weights side by side. The arithmetic is the same single-precision operations everywhere (here,
in `measure/unpack.py` with numpy, in a file's own graph), so that all give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from worker.engine.graph.copies import sharing_copy

TRITS_A_BYTE = 5


@dataclass(frozen=True)
class Coded:
    """One weight of `shape`; its rows are dimension 0. `codes` are uint8, one for each weight or entry, all below
    `levels`.

    A grid has `scale` (half precision, rows times groups, to be multiplied by the single-precision power of two
    `unit`), `zero` (uint8) where it is not symmetric, and groups of `group` weights side by side in a row, the last of
    which may be shorter. A codebook has `codebook`, [entries, weights of one] in single precision.
    """

    shape: tuple[int, ...]
    levels: int
    codes: Tensor
    tables: Mapping[str, Tensor]
    group: int = 0
    spacing: int = 1
    offset: int = 0

    @property
    def is_grid(self) -> bool:
        return "scale" in self.tables

    def values(self) -> Tensor:
        """The weight, in single precision."""
        if not self.is_grid:
            return entries(self.codes, self.tables["codebook"], self.shape)
        scale = self.tables["scale"].float() * self.tables["unit"]
        zero = self.tables.get("zero")
        return on_grid(self.codes, scale, zero, self.shape, self.group, self.spacing, self.offset)

    def packed(self) -> Tensor:
        """The codes as bytes: a stream of bits, the lowest first, or five ternary digits in each, the lowest first."""
        return pack(self.codes, self.levels)

    def stored_bytes(self) -> int:
        tables = sum(table.numel() * table.element_size() for table in self.tables.values())
        return packed_bytes(self.codes.numel(), self.levels) + tables

    def settings(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "shape": list(self.shape),
            "levels": self.levels,
            "group": self.group,
            "spacing": self.spacing,
            "offset": self.offset,
        }

    def tensors(self) -> dict[str, Tensor]:
        return {"codes": self.codes, **self.tables}

    @classmethod
    def of(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Coded:
        """Undoes `settings` and `tensors`."""
        tables = {name: tensor for name, tensor in tensors.items() if name != "codes"}
        rest = {name: value for name, value in settings.items() if name != "shape"}
        return cls(tuple(settings["shape"]), codes=tensors["codes"], tables=tables, **rest)


def on_grid(
    codes: Tensor, scale: Tensor, zero: Tensor | None, shape: tuple[int, ...], group: int, spacing: int, offset: int
) -> Tensor:
    """`scale` in single precision and `zero`, for each group of each row in order."""
    rows = shape[0]
    steps = codes.reshape(rows, -1).to(torch.float32) * spacing - offset
    if zero is not None:
        steps = steps - _spread(zero.to(torch.float32), rows, group, steps.shape[1])
    return (steps * _spread(scale, rows, group, steps.shape[1])).reshape(shape)


def _spread(table: Tensor, rows: int, group: int, columns: int) -> Tensor:
    """One for each group as one for each weight: [rows, columns]."""
    by_group = table.reshape(rows, -1, 1)
    return by_group.expand(rows, by_group.shape[1], group).reshape(rows, -1)[:, :columns]


def entries(codes: Tensor, codebook: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Gradients of the codebook's entries add up over the weights that share them (Han et al., 2016, section 3.2)."""
    return functional.embedding(codes.to(torch.int32), codebook).reshape(-1)[: math.prod(shape)].reshape(shape)


def bits_of(levels: int) -> int:
    return (levels - 1).bit_length()


def packed_bytes(count: int, levels: int) -> int:
    return math.ceil(count / TRITS_A_BYTE) if levels == 3 else math.ceil(count * bits_of(levels) / 8)


def pack(codes: Tensor, levels: int) -> Tensor:
    """[codes] below `levels` to bytes."""
    size, base, digits = codes.numel(), *digits_in_a_byte(levels)
    if levels != 3 and 8 % bits_of(levels):
        codes = ((codes.reshape(-1, 1) >> torch.arange(bits_of(levels), dtype=torch.uint8)) & 1).reshape(-1)
        size = codes.numel()
    padded = functional.pad(codes, (0, -size % digits)).reshape(-1, digits).to(torch.int32)
    return (padded * base ** torch.arange(digits, dtype=torch.int32)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, levels: int, count: int) -> Tensor:
    """Undoes `pack`; int32."""
    base, digits = digits_in_a_byte(levels)
    powers = base ** torch.arange(digits, dtype=torch.int32, device=packed.device)
    found = (packed.to(torch.int32).unsqueeze(1) // powers % base).reshape(-1)
    if levels != 3 and 8 % (bits := bits_of(levels)):
        weights = 2 ** torch.arange(bits, dtype=torch.int32, device=packed.device)
        found = (found[: count * bits].reshape(count, bits) * weights).sum(1, dtype=torch.int32)
    return found[:count]


def digits_in_a_byte(levels: int) -> tuple[int, int]:
    """The base of the digits in a byte, and how many there are; single bits where codes cross from byte to byte."""
    if levels == 3:
        return 3, TRITS_A_BYTE
    bits = bits_of(levels)
    return (2, 8) if 8 % bits else (1 << bits, 8 // bits)


class StoredCodes(nn.Module):
    """A weight that is made from its bytes whenever it is asked for, in operators that every torch has."""

    packed: Tensor

    def __init__(self, coded: Coded) -> None:
        super().__init__()
        self._shape, self._levels, self._count = coded.shape, coded.levels, coded.codes.numel()
        self._group, self._spacing, self._offset = coded.group, coded.spacing, coded.offset
        self.register_buffer("packed", coded.packed())
        for name, table in coded.tables.items():
            self.register_buffer(name, table.clone())

    def forward(self) -> Tensor:
        codes = unpack(self.packed, self._levels, self._count)
        tables = dict(self.named_buffers())
        if "codebook" in tables:
            return entries(codes, tables["codebook"], self._shape)
        scale = tables["scale"].to(torch.float32) * tables["unit"]
        return on_grid(codes, scale, tables.get("zero"), self._shape, self._group, self._spacing, self._offset)


SOURCE = "weight_source"
"""The child of a layer that makes its weight."""


def _made(kind: type[nn.Module]) -> type[nn.Module]:
    """The kind of layer whose weight is what its child says."""
    return type(kind.__name__, (kind,), {"weight": property(lambda layer: layer.get_submodule(SOURCE)())})


def make_weight(layer: nn.Module, source: nn.Module) -> None:
    """From now on the weight of `layer` is what `source` gives for no arguments."""
    del layer.weight
    layer.add_module(SOURCE, source)
    layer.__class__ = _made(type(layer))


def holders(network: nn.Module) -> dict[int, list[tuple[str, str, nn.Module]]]:
    """Of each parameter, by its identity: the layers that have it, as (layer's name, name in it, layer)."""
    found: dict[int, list[tuple[str, str, nn.Module]]] = {}
    for name, layer in network.named_modules():
        for leaf, parameter in layer.named_parameters(recurse=False):
            found.setdefault(id(parameter), []).append((name, leaf, layer))
    return found


def coded_network(graph: fx.GraphModule, coded: Mapping[str, Coded]) -> fx.GraphModule:
    """A copy of `graph` that holds codes in place of the weights in `coded` (by parameter) that are still what the
    codes say; `graph` itself where there are none."""
    held = {name: each for name, each in coded.items() if is_held(graph, name, each)}
    if not held:
        return graph
    network = sharing_copy(graph)
    layers = holders(network)
    for name, each in held.items():
        source = StoredCodes(each)
        for _, _, layer in layers[id(network.get_parameter(name))]:
            make_weight(layer, source)
    return network


def is_held(graph: nn.Module, name: str, coded: Coded) -> bool:
    """Whether the parameter of `graph` is bit for bit what the codes say."""
    found = dict(graph.named_parameters(remove_duplicate=False)).get(name)
    if found is None or tuple(found.shape) != coded.shape or found.dtype != torch.float32:
        return False
    return torch.equal(found.detach().cpu().view(torch.int32), coded.values().view(torch.int32))
