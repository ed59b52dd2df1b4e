"""Weights of few bits in an ONNX file: their bytes, and operators that make floats of them.

ONNX Runtime computes what depends on no input once, when it loads the file, so the file and the download are small
while speed and memory are those of floats. (It would not do so for DequantizeLinear, whose result it leaves to every
call.) All operators are standard ones, but those of layers that round their inputs in blocks (`onnx_blocks`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript import opset18
from torch import Tensor, fx, nn

from worker.engine.export.onnx_blocks import (
    BlockProduct,
    block_of,
    stored_codes,
    stored_zeros,
    with_weight,
    write_product,
)
from worker.engine.graph.blocks import BlockLinear
from worker.engine.graph.coded import Coded, bits_of, digits_in_a_byte, holders, is_held, make_weight

_LIBRARY: Any = torch.library.Library("modelpress_codes", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("weight(int place, int[] shape, *, Device? device=None) -> Tensor")
_LIBRARY.impl(
    "weight", lambda place, shape, device=None: torch.zeros(shape, device=device), "CompositeExplicitAutograd"
)
WEIGHT = torch.ops.modelpress_codes.weight.default
_MARK = -1.0
"""The standard deviation of no random numbers."""


class _Placeholder(nn.Module):
    """Stands for a weight that the exporter is not to see: it would fold normalization and turns into it."""

    def __init__(self, place: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._place, self._shape = place, shape

    def forward(self) -> Tensor:
        found: Tensor = WEIGHT(self._place, list(self._shape))
        return found


Named = tuple[str, Coded]
"""The name of a parameter, and what it is stored as."""


def with_placeholders(graph: fx.GraphModule, coded: Mapping[str, Coded]) -> tuple[fx.GraphModule, list[Named]]:
    """A copy of `graph` in which weights that are what `coded` says are placeholders, and what each stands for."""
    held = [(name, each) for name, each in coded.items() if is_held(graph, name, each)]
    if not held:
        return graph, []
    network = copy.deepcopy(graph)
    layers = holders(network)
    for place, (name, each) in enumerate(held):
        for path, _, layer in layers[id(network.get_parameter(name))]:
            if isinstance(layer, BlockLinear):
                network.set_submodule(path, BlockProduct(place, layer, bits_of(each.levels)))
            else:
                make_weight(layer, _Placeholder(place, each.shape))
    return network, held


def write_placeholder(place: int, shape: Sequence[int], device: object = None) -> Any:
    """What the exporter writes for one: an operator whose result no optimizer takes for known."""
    op: Any = opset18
    return op.RandomNormal(shape=list(shape), scale=_MARK, seed=float(place))


def write_block_product(x: Any, place: int, bits: int, block: int, outputs: int) -> Any:
    return write_product(x, write_placeholder(place, [1]), bits, block, outputs)


def store_codes(model: onnx.ModelProto, coded: Sequence[Named]) -> None:
    """Put bytes and operators in place of the placeholders."""
    graph = model.graph
    tables = _Tables(graph)
    places = {node.output[0]: place for node in graph.node if (place := _place(node)) is not None}
    multiplied = {node.input[1] for node in graph.node if block_of(node) is not None}
    made: dict[int, str] = {}
    parts: dict[int, tuple[str, str, str | None]] = {}
    other_names: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []

    def decoder(place: int) -> _Decoder:
        return _Decoder(*coded[place], tables, nodes)

    for node in graph.node:
        node.input[:] = [other_names.get(name, name) for name in node.input]
        place, block = _place(node), block_of(node)
        if block is not None:
            weight = places[node.input[1]]
            if weight not in parts:
                parts[weight] = decoder(weight).parts(block)
            nodes.append(with_weight(node, *parts[weight]))
        elif place is None:
            nodes.append(node)
        elif place in made:
            other_names[node.output[0]] = made[place]
        elif node.output[0] not in multiplied:
            made[place] = node.output[0]
            decoder(place).weight(node.output[0])
    del graph.node[:]
    graph.node.extend(nodes)


def _place(node: onnx.NodeProto) -> int | None:
    """Of the weight that a placeholder stands for."""
    numbers = {attribute.name: attribute.f for attribute in node.attribute}
    return int(numbers["seed"]) if node.op_type == "RandomNormal" and numbers.get("scale") == _MARK else None


class _Tables:
    """Initializers; small ones that several weights need are written once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._shared: dict[tuple[str, bytes], str] = {}

    def add(self, name: str, values: NDArray[Any]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def shared(self, values: NDArray[Any]) -> str:
        key = (f"{values.dtype}{values.shape}", values.tobytes())
        if key not in self._shared:
            self._shared[key] = self.add(f"code_table_{len(self._shared)}", values)
        return self._shared[key]


class _Decoder:
    """Appends to `nodes` what makes a weight, or its parts; `name` begins the names of what they need."""

    def __init__(self, name: str, coded: Coded, tables: _Tables, nodes: list[onnx.NodeProto]) -> None:
        self._coded, self._name, self._tables, self._nodes = coded, name, tables, nodes
        self._count = 0

    def weight(self, result: str) -> None:
        codes = self._codes()
        value = self._on_grid(codes) if self._coded.is_grid else self._entries(codes)
        self._op("Reshape", value, self._tables.shared(np.array(self._coded.shape, np.int64)), result=result)

    def parts(self, block: int) -> tuple[str, str, str | None]:
        """The codes, the scales in single precision, and the zeros where there are any: all as they are, since the
        kernel takes what is computed for anything when nobody folded it before (optimizations off)."""
        tables, zeros = self._coded.tables, stored_zeros(self._coded)
        codes = self._tables.add(f"{self._name}.codes", stored_codes(self._coded, block))
        scales = self._tables.add(f"{self._name}.scale", (tables["scale"].float() * tables["unit"]).numpy())
        return codes, scales, None if zeros is None else self._tables.add(f"{self._name}.zero", zeros)

    def _op(self, kind: str, *inputs: str, result: str | None = None, **attributes: Any) -> str:
        output = result or f"{self._name}.{self._count}"
        self._count += 1
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _shaped(self, value: str, *shape: int) -> str:
        return self._op("Reshape", value, self._tables.shared(np.array(shape, np.int64)))

    def _first(self, value: str, count: int, axis: int) -> str:
        bounds = (self._tables.shared(np.array([number], np.int64)) for number in (0, count, axis))
        return self._op("Slice", value, *bounds)

    def _number(self, value: int, dtype: type[np.generic]) -> str:
        return self._tables.shared(np.array(value, dtype))

    def _codes(self) -> str:
        """int32, one for each code."""
        coded = self._coded
        levels, count = coded.levels, coded.codes.numel()
        stored = self._tables.add(f"{self._name}.codes", coded.packed().numpy())
        value = self._op("Cast", stored, to=TensorProto.INT32)
        if levels == 256:
            return value
        base, digits = digits_in_a_byte(levels)
        powers = self._tables.shared((base ** np.arange(digits)).astype(np.int32))
        value = self._op("Div", self._shaped(value, -1, 1), powers)
        value = self._shaped(self._op("Mod", value, self._number(base, np.int32)), -1)
        if base == 2 and digits == 8 and (bits := bits_of(levels)) > 1:
            value = self._shaped(self._first(value, count * bits, 0), count, bits)
            value = self._op("Mul", value, self._tables.shared((2 ** np.arange(bits)).astype(np.int32)))
            axes = self._tables.shared(np.array([1], np.int64))
            return self._op("ReduceSum", value, axes, keepdims=0)
        return self._first(value, count, 0)

    def _entries(self, codes: str) -> str:
        table = self._tables.add(f"{self._name}.codebook", self._coded.tables["codebook"].numpy())
        value = self._shaped(self._op("Gather", table, codes), -1)
        return self._first(value, int(np.prod(self._coded.shape)), 0)

    def _on_grid(self, codes: str) -> str:
        coded = self._coded
        rows = coded.shape[0]
        value = self._shaped(self._op("Cast", codes, to=TensorProto.FLOAT), rows, -1)
        value = self._op("Mul", value, self._number(coded.spacing, np.float32))
        value = self._op("Sub", value, self._number(coded.offset, np.float32))
        if "zero" in coded.tables:
            stored = self._tables.add(f"{self._name}.zero", coded.tables["zero"].numpy())
            value = self._op("Sub", value, self._spread(self._op("Cast", stored, to=TensorProto.FLOAT)))
        stored = self._tables.add(f"{self._name}.scale", coded.tables["scale"].numpy())
        scale = self._op("Cast", stored, to=TensorProto.FLOAT)
        scale = self._op("Mul", scale, self._tables.shared(coded.tables["unit"].numpy()))
        return self._op("Mul", value, self._spread(scale))

    def _spread(self, table: str) -> str:
        """One for each group as one for each weight of its row."""
        rows, group = self._coded.shape[0], self._coded.group
        columns = int(np.prod(self._coded.shape[1:]))
        groups = -(-columns // group)
        value = self._shaped(table, rows, groups, 1)
        value = self._op("Expand", value, self._tables.shared(np.array([rows, groups, group], np.int64)))
        value = self._shaped(value, rows, groups * group)
        return value if groups * group == columns else self._first(value, columns, 1)
