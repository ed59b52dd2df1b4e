"""A network exported with one batch size has that size written into its views: here they are computed instead.

Which of the numbers are the batch is a guess, by where in a view the batch's stride lies; whether it was right is for
the caller to prove.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from worker.engine.graph.ops.call import arguments_of, set_argument
from worker.engine.graph.shapes import Sizes, sizes_of
from worker.engine.ingest.program import Program
from worker.engine.ingest.trace import Trace, trace, trace_with

aten = torch.ops.aten

_VIEWS = {aten.reshape.default: "shape"}
_EXPANSIONS = {aten.expand.default: "size", aten.repeat.default: "repeats"}
_FACTORIES = {
    aten.zeros.default: "size",
    aten.ones.default: "size",
    aten.full.default: "size",
    aten.new_zeros.default: "size",
    aten.new_ones.default: "size",
    aten.new_full.default: "size",
}
_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def stretched(program: Program, exported: int, constants: bool) -> Program:
    """A copy of `program`, which was exported with a batch of `exported`, whose views take the batch they are given.

    With `constants`, also tensors that are made or repeated for the whole batch, where one of their sizes is the batch.
    Raises `DoesNotRun` when it still does not run with one sample more.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for node in graph.nodes:
        if node.target is aten.view.default:  # a batch of one can be viewed where a larger one has to be copied
            arguments = arguments_of(node)
            node.target, node.args, node.kwargs = aten.reshape.default, (arguments["self"], arguments["size"]), {}
    copy = replace(program, graph=graph)
    before = {node: shape for node, (_, shape) in trace(copy, exported).shapes.items()}
    found = trace_with(partial(_Stretch, before, exported, constants), copy, exported + 1)
    _compute(graph, found.factors)
    return copy


class _Stretch(Trace):
    """Runs with one sample more and resizes what does not fit; `factors` has how many times the batch a size is."""

    def __init__(
        self, before: dict[fx.Node, Sizes], batch: int, repeats: bool, program: Program, tensors: dict[str, Tensor]
    ) -> None:
        super().__init__(program, tensors)
        self.before, self.batch, self.repeats = before, batch, repeats
        self.factors: dict[fx.Node, dict[int, int]] = {}

    def compute(self, node: fx.Node) -> Any:
        factors = self._factors(node)
        if not factors:
            return super().compute(node)
        self.factors[node] = factors
        name, args, kwargs = _size_argument(node), node.args, node.kwargs
        wanted = list(arguments_of(node)[name])
        for place, factor in factors.items():
            wanted[place] = factor * (self.batch + 1)
        set_argument(node, name, wanted)
        try:
            return super().compute(node)
        finally:
            node.args, node.kwargs = args, kwargs

    def _factors(self, node: fx.Node) -> dict[int, int]:
        name = _size_argument(node) if isinstance(node.target, OpOverload) else ""
        wanted = arguments_of(node)[name] if name else []
        if not all(type(size) is int for size in wanted):
            return {}
        if node.target in _VIEWS:
            place = self._batch_in_view(node, wanted)
        elif node.target in _EXPANSIONS:
            place = self._batch_in_expansion(node, wanted)
        else:
            place = self._batch_in_factory(node, wanted)
        return {} if place is None else {place: self.before[node][place] // self.batch}

    def _varying(self, node: fx.Node) -> list[int]:
        """Dimensions that have grown with the batch."""
        pairs = zip(self.before[node], sizes_of(node), strict=True)
        return [dim for dim, (old, new) in enumerate(pairs) if old != new]

    def _batch_in_view(self, node: fx.Node, wanted: Sequence[int]) -> int | None:
        """Where the result has the batch: the dimension whose strides hold the batch's stride in the source."""
        source = arguments_of(node)["self"]
        varying = self._varying(source)
        if len(varying) != 1:
            return None
        sizes, result = self.before[source], self.before[node]
        stride = math.prod(sizes[varying[0] :]) // self.batch
        inner = [math.prod(result[place + 1 :]) for place in range(len(result))]
        holding = [
            place
            for place, size in enumerate(result)
            if size % self.batch == 0 and inner[place] <= stride and stride * self.batch <= inner[place] * size
        ]
        exact = [place for place in holding if inner[place] == stride and result[place] == self.batch]
        place = next(iter(exact or holding), None)
        return None if place is None or wanted[place] == -1 else place

    def _batch_in_expansion(self, node: fx.Node, wanted: Sequence[int]) -> int | None:
        source = arguments_of(node)["self"]
        lead = len(wanted) - len(self.before[source])
        if node.target is aten.expand.default:
            for dim in self._varying(source):
                return None if wanted[dim + lead] == -1 else dim + lead
        elif self._varying(source):
            return None
        alone = lead > 0 or self.before[source][0] == 1
        return 0 if self.repeats and alone and wanted[0] == self.batch else None

    def _batch_in_factory(self, node: fx.Node, wanted: Sequence[int]) -> int | None:
        """The first size that is the batch; the states of recurrent layers are [layers, batch, hidden]."""
        states = bool(node.users) and all(user.target in _RECURRENT for user in node.users)
        places = [place for place, size in enumerate(wanted) if size == self.batch and not (states and place == 0)]
        return places[0] if self.repeats and places else None


def _size_argument(node: fx.Node) -> str:
    return {**_VIEWS, **_EXPANSIONS, **_FACTORIES}.get(node.target, "")  # type: ignore[call-overload, no-any-return]


def _compute(graph: fx.Graph, factors: dict[fx.Node, dict[int, int]]) -> None:
    """Write the sizes as multiples of the first input's dimension 0, as an export with a dynamic batch does."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        batch = graph.call_function(aten.sym_size.int, (inputs[0], 0))
    for node, places in factors.items():
        name = _size_argument(node)
        wanted = list(arguments_of(node)[name])
        for place, factor in places.items():
            wanted[place] = batch
            if factor > 1:
                with graph.inserting_before(node):
                    wanted[place] = graph.call_function(operator.mul, (batch, factor))
        set_argument(node, name, wanted)
