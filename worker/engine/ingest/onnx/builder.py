"""The graph under construction: ATen calls, and the tensors they use under their names."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map

from models.errors import Code, Failure
from worker.engine.graph.ops.op import operator_name
from worker.engine.graph.ops.table import OPS
from worker.engine.ingest.names import safe_name
from worker.engine.ingest.native import run_on_shapes
from worker.engine.ingest.onnx.known import BATCHES, Known, PerBatch, Sizes
from worker.engine.ingest.rejected import rejected, shown

MAXIMUM_CONSTANT_BYTES = 4 << 30
"""For one value folded while reading."""

_A = torch.ops.aten
_MOVES = frozenset(
    {
        _A.reshape.default, _A.permute.default, _A.slice.Tensor, _A.select.int, _A.unsqueeze.default, _A.cat.default,
        _A.squeeze.dims, _A.to.dtype, _A.split_with_sizes.default, _A.index_select.default, _A.embedding.default,
        _A.flatten.using_ints, _A.index.Tensor, _A.t.default, _A.expand.default,
    }
)  # fmt: skip
"""Operators that only move elements: a weight stays one."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*")


class Builder:
    """`tensors` are by name; `parameters` and `buffers` are such names; `sources` maps them to those in the file.
    `fixed_batch` is the only size of the batch that the file allows, where it does; values of the element types in
    `widened` become float32."""

    def __init__(self, fixed_batch: int | None = None, widened: frozenset[torch.dtype] = frozenset()) -> None:
        self.fixed_batch = fixed_batch
        self._widened = widened
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.parameters: set[str] = set()
        self.buffers: set[str] = set()
        self.sources: dict[str, str] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._attached: dict[tuple[object, ...], tuple[fx.Node, Known]] = {}
        self._inputs: list[fx.Node] = []
        self._head: fx.Node | None = None
        self._sizes: dict[PerBatch, fx.Node] = {}

    def placeholder(self, name: str, dtype: torch.dtype, sizes: Sizes) -> fx.Node:
        """An input; `sizes` without the batch."""
        node = self.graph.placeholder(safe_name(name, "input"))
        with self._mode:
            values = tuple(torch.empty((batch, *sizes), dtype=dtype) for batch in BATCHES)
        node.meta.update(values=values, shape=[None, *sizes], dtype=dtype)
        self._inputs.append(node)
        self._head = node
        return node

    def element_type(self, dtype: torch.dtype) -> torch.dtype:
        return torch.float32 if dtype in self._widened else dtype

    def widen(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.element_type(tensor.dtype))

    def size(self, values: PerBatch) -> int | fx.Node:
        """A size: a number, or arithmetic on the size of the batch that the network is given."""
        if values.constant:
            return values[0]
        slope = (values[1] - values[0]) // (BATCHES[1] - BATCHES[0])
        offset = values[0] - slope * BATCHES[0]
        if any(value != slope * batch + offset for batch, value in zip(BATCHES, values, strict=True)):
            raise rejected("a size does not grow in proportion to the batch")
        node = self._size(BATCHES, lambda: self.graph.call_function(_A.sym_size.int, (self._inputs[0], 0)))
        if slope != 1:
            scaled = tuple(slope * batch for batch in BATCHES)
            batch = node
            node = self._size(scaled, lambda: self.graph.call_function(operator.mul, (batch, slope)))
        if offset:
            product = node
            node = self._size(values, lambda: self.graph.call_function(operator.add, (product, offset)))
        return node

    def _size(self, values: Sizes, make: Callable[[], fx.Node]) -> fx.Node:
        """Once for each size, right behind the inputs, so that every later node may use it."""
        known = PerBatch(values)
        if known not in self._sizes:
            node = self._at_head(make)
            node.meta.update(values=known, size=True)
            self._sizes[known] = node
        return self._sizes[known]

    def _at_head(self, make: Callable[[], fx.Node]) -> fx.Node:
        assert self._head is not None
        with self.graph.inserting_after(self._head):
            self._head = make()
        return self._head

    def call(
        self, target: OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any], layer: str, name: str
    ) -> Any:
        """The result of an operator: computed where all its operands are known, else recorded in the graph.

        Gives an operand, or a list of them for an operator with several results.
        """
        leaves = tree_leaves((arguments, keywords), is_leaf=_is_leaf)
        known = [leaf for leaf in leaves if isinstance(leaf, Known)]
        varies = any(isinstance(leaf, PerBatch) and not leaf.constant for leaf in leaves)
        if any(isinstance(leaf, fx.Node) for leaf in leaves) or (varies and any(each.trained for each in known)):
            return self._record(target, arguments, keywords, layer)
        constant = not varies and all(each.constant for each in known)
        values = [
            self._compute(target, *_at((arguments, keywords), index))
            for index in range(1 if constant else len(BATCHES))
        ]
        trained = target in _MOVES and any(each.trained for each in known)
        if isinstance(values[0], Tensor):
            return Known.of(values if not constant else values * len(BATCHES), name, trained)
        parts = zip(*values, strict=True)
        return [
            Known.of(part if not constant else part * len(BATCHES), f"{name}_{place}", trained)
            for place, part in enumerate(parts)
        ]

    def _compute(self, target: OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        with torch.no_grad():
            with self._mode:
                made = target(*arguments, **keywords)
            if any(bytes_of(leaf) > MAXIMUM_CONSTANT_BYTES for leaf in tree_leaves(made) if isinstance(leaf, Tensor)):
                raise rejected(f"a constant of the graph needs more than {MAXIMUM_CONSTANT_BYTES >> 30} GiB")
            return target(*arguments, **keywords)

    def _record(self, target: OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any], layer: str) -> Any:
        if operator_name(target) not in OPS:
            raise Failure(Code.UNSUPPORTED_OP, f"its translation needs {target}, which has no rules here", where=layer)

        def in_graph(leaf: Any) -> Any:
            if isinstance(leaf, Known):
                return self.attach(leaf, layer)
            return self.size(leaf) if isinstance(leaf, PerBatch) else leaf

        arguments, keywords = tree_map(in_graph, (arguments, keywords), is_leaf=_is_leaf)
        node = self.graph.call_function(target, arguments, keywords)
        with torch.no_grad(), self._mode:
            results = []
            for index in range(len(BATCHES)):
                args, kwargs = _at((node.args, node.kwargs), index)
                results.append(run_on_shapes(target, args, kwargs))
        node.meta["layer"] = layer
        if isinstance(results[0], Tensor):
            return _describe(node, results)
        parts = []
        for place, values in enumerate(zip(*results, strict=True)):
            parts.append(_describe(self.graph.call_function(operator.getitem, (node, place)), values))
            parts[-1].meta["layer"] = layer
        return parts

    def attach(self, known: Known, layer: str, leaf: str | None = None, buffer: bool = False) -> fx.Node:
        """The node that stands for a known value in the graph.

        `leaf` is what the value is to its layer, such as `weight`, which makes it a parameter; `buffer` makes it a
        statistic. Without them it is a parameter where it was trained, else a constant. The same value is the same
        node, so what is tied stays tied.
        """
        if not known.constant:
            return self._spread(known, layer)
        value = known.tensor
        floating = value.is_floating_point()
        is_parameter = not buffer and floating and (leaf is not None or (known.trained and value.numel() > 1))
        # Vectors of one number are shared by tools that fold equal initializers, not because layers are tied; and
        # statistics change in training, each layer's own.
        own = buffer or (leaf is not None and value.dim() == 1 and bool((value == value[:1]).all()))
        key = (id(known), is_parameter, (layer, leaf) if own else None)
        if key not in self._attached:
            name = self._name(known, layer, leaf)
            if not (is_parameter and known.initializer) or own:
                value = value.clone(memory_format=torch.contiguous_format)
            self.tensors[name] = nn.Parameter(value) if is_parameter else value
            self.sources[name] = known.name
            if is_parameter:
                self.parameters.add(name)
            elif buffer:
                self.buffers.add(name)
            node = self._at_head(lambda: self.graph.get_attr(name))
            self._attached[key] = _describe(node, [self._fake(self.tensors[name])] * len(BATCHES)), known
        return self._attached[key][0]

    def _fake(self, tensor: Tensor) -> Tensor:
        return self._mode.from_tensor(tensor)

    def _name(self, known: Known, layer: str, leaf: str | None) -> str:
        """The initializer's own name where it reads like a path in a network, else one made of the layer's."""
        path, _, last = known.name.rpartition(".")
        is_path = known.initializer and _NAME.fullmatch(known.name) is not None
        if is_path and (path or leaf is None):
            name = known.name if leaf is None or last.endswith(leaf) else f"{path}.{leaf}"
        else:
            name = f"{layer}.{leaf or 'constant'}"
        folder, _, end = name.rpartition(".")
        candidates = (f"{folder}_{number}.{end}" if folder else f"{end}_{number}" for number in itertools.count(2))
        while name in self.tensors:
            name = next(candidates)
        return name

    def _spread(self, known: Known, layer: str) -> fx.Node:
        """A value that is repeated along the batch, or counts its samples, as arithmetic on the size of the batch."""
        ranks = {value.dim() for value in known.values}
        if len(ranks) == 1:
            small = list(known.values)
            for dim in range(ranks.pop()):
                if all(value.shape[dim] > 0 and _is_repeated(value, dim) for value in small):
                    small = [value.narrow(dim, 0, 1) for value in small]
            core = Known.of(small, known.name)
            sizes = [self.size(PerBatch(each)) for each in zip(*(value.shape for value in known.values), strict=True)]
            if core.constant:
                if core.number == 0:
                    return self._call_now(_A.zeros.default, (sizes,), {"dtype": core.tensor.dtype}, known, layer)
                if core.number is not None:
                    return self._call_now(
                        _A.full.default, (sizes, core.number), {"dtype": core.tensor.dtype}, known, layer
                    )
                return self._call_now(_A.expand.default, (self.attach(core, layer), sizes), {}, known, layer)
            flat = [value.flatten() for value in small]
            if all(torch.equal(value, torch.arange(len(value)).to(value.dtype)) for value in flat):
                length = self.size(PerBatch([len(value) for value in flat]))
                counted = self.graph.call_function(_A.arange.default, (length,), {"dtype": flat[0].dtype})
                _describe(counted, [self._fake(value) for value in flat])
                return self._call_now(_A.reshape.default, (counted, sizes), {}, known, layer)
        raise rejected(f"the value {shown(known.name)} changes with the batch in a way that is not read")

    def _call_now(
        self, target: OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any], known: Known, layer: str
    ) -> fx.Node:
        node = self.graph.call_function(target, arguments, keywords)
        node.meta["layer"] = layer
        return _describe(node, [self._fake(value) for value in known.values])


def bytes_of(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _describe(node: fx.Node, values: Any) -> fx.Node:
    """Note what a node gives for each of BATCHES."""
    sizes = [PerBatch(each) for each in zip(*(value.shape for value in values), strict=True)]
    node.meta.update(values=tuple(values), dtype=values[0].dtype)
    node.meta["shape"] = [size[0] if size.constant else None for size in sizes]
    return node


def _is_leaf(value: object) -> bool:
    return isinstance(value, PerBatch | Known)


def _at(arguments: Any, index: int) -> Any:
    """Arguments as they are for one of BATCHES."""

    def value(leaf: Any) -> Any:
        if isinstance(leaf, Known):
            return leaf.values[index]
        if isinstance(leaf, PerBatch):
            return leaf[index]
        return leaf.meta["values"][index] if isinstance(leaf, fx.Node) else leaf

    return tree_map(value, arguments, is_leaf=_is_leaf)


def _is_repeated(value: Tensor, dim: int) -> bool:
    first = value.narrow(dim, 0, 1)
    return bool(((value == first) | ((value != value) & (first != first))).all())
