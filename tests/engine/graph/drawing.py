"""Random networks made of the registry's operators.

A network is drawn call by call: `Drawing` runs each on two samples, so that the next one sees real shapes. What an
operator is given is the business of one function a family; families are those of the channel rules, so that a new row
with a known rule is drawn without more ado.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, fx, nn

from models.inspection import TensorInfo
from worker.engine.graph.lift import compose
from worker.engine.ingest.program import Program
from worker.engine.ingest.trial import check_batch

aten = torch.ops.aten
_T = TypeVar("_T")
BATCH = 11
"""Unlike all other sizes, so that none is broadcast to it by chance."""
MOST_VALUES = 30_000


class Choices(Protocol):
    """Where randomness comes from: a seed, or Hypothesis, which then finds a smaller network with the same fault."""

    def pick(self, items: Sequence[_T]) -> _T: ...


class Seeded:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, items: Sequence[_T]) -> _T:
        return self._random.choice(items)


class Unfit(Exception):
    """The operator cannot be called on what is there."""


@dataclass(frozen=True)
class Place:
    """A value of the network, by its number."""

    number: int


@dataclass(frozen=True)
class Step:
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: int


class Drawn(nn.Module):
    """The network: calls in order, on numbered values."""

    def __init__(self, steps: Sequence[Step], held: dict[int, Tensor], output: Place) -> None:
        super().__init__()
        self.steps, self.output = steps, output
        self.names = [f"held_{number}" for number in sorted(held)]
        for name, number in zip(self.names, sorted(held), strict=True):
            tensor = held[number]
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, tensor)
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        values: list[Any] = [x, *(getattr(self, name) for name in self.names)]
        for step in self.steps:
            args, kwargs = _filled((step.args, step.kwargs), values)
            result = step.target(*args, **kwargs)
            values += list(result) if isinstance(result, tuple | list) else [result]
        output: Tensor = values[self.output.number]
        return output

    def __str__(self) -> str:
        held = "\n".join(f"{number + 1}: {name}" for number, name in enumerate(self.names))
        calls, number = [], len(self.names) + 1
        for step in self.steps:
            calls.append(f"{number}: {step.target} {step.args} {step.kwargs or ''}")
            number += step.results
        return f"{held}\n" + "\n".join(calls)


def _filled(value: Any, values: Any) -> Any:
    if isinstance(value, Place):
        return values[value.number]
    if isinstance(value, tuple | list):
        return type(value)(_filled(item, values) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value


class Drawing:
    """`pool` has the values a call may take: floats, a row a sample, of two to five dimensions."""

    def __init__(self, choices: Choices, x: Tensor) -> None:
        self.pick = choices.pick
        self.steps: list[Step] = []
        self.pool: list[Place] = [Place(0)]
        self._values: dict[int, Any] = {0: x}
        self._held: dict[int, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def shape(self, place: Place) -> tuple[int, ...]:
        return tuple(self._values[place.number].shape)

    def dtype(self, place: Place) -> torch.dtype:
        dtype: torch.dtype = self._values[place.number].dtype
        return dtype

    def parameter(self, *shape: int) -> Place:
        """Half to one and a half, so that a product neither dies out nor grows."""
        values = torch.rand(shape, generator=self._generator) + 0.5
        return self._hold(nn.Parameter(values / max(1, shape[-1]) if len(shape) > 1 else values))

    def buffer(self, tensor: Tensor) -> Place:
        return self._hold(tensor)

    def _hold(self, tensor: Tensor) -> Place:
        # Held tensors come before all calls, so they are numbered apart.
        number = -len(self._held) - 1
        self._held[number] = self._values[number] = tensor
        return Place(number)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> list[Place]:
        """Raises `Unfit` when the call fails or gives what no later call could take."""
        filled = _filled((args, kwargs), self._values)
        try:
            with torch.no_grad():
                result = target(*filled[0], **filled[1])
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise Unfit(str(error)) from error
        items = list(result) if isinstance(result, tuple | list) else [result]
        if any(item.numel() > MOST_VALUES or not item.isfinite().all() for item in items):
            raise Unfit("too large, or not finite")
        self.steps.append(Step(target, args, kwargs, len(items)))
        places = [Place(sum(number >= 0 for number in self._values) + index) for index in range(len(items))]
        self._values.update({place.number: item for place, item in zip(places, items, strict=True)})
        return places

    def value(self, *ranks: int) -> Place:
        """One of the pool, of one of these ranks."""
        fit = [place for place in self.pool if not ranks or len(self.shape(place)) in ranks]
        if not fit:
            raise Unfit("no value of such a rank")
        return self.pick(fit[-3:] if self.pick([True, False]) else fit)

    def dimension(self, place: Place) -> int:
        """Any but the batch."""
        return self.pick(range(1, len(self.shape(place))))

    def positive(self, place: Place) -> Place:
        """The value between a half and one and a half, where every function is defined and smooth."""
        return self.call(aten.add.Scalar, self.call(aten.sigmoid.default, place)[0], 0.5)[0]

    def keep(self, place: Place) -> None:
        """Let later calls take the value, as floats and combined with something that has a row a sample."""
        if self.dtype(place).is_complex:
            (place,) = self.call(aten.abs.default, place)
        if self.dtype(place) != torch.float32:
            place = self.call(aten.to.dtype, place, torch.float32)[0]
        shape = self.shape(place)
        if BATCH in shape[1:]:
            raise Unfit("the batch is not where it should be")
        if not 2 <= len(shape) <= 5 or shape[0] != BATCH:
            (place,) = self.call(aten.add.Tensor, self.value(), place)
        if not 2 <= len(self.shape(place)) <= 5 or self.shape(place)[0] != BATCH:
            raise Unfit("has no row a sample")
        self.pool.append(place)

    def finish(self) -> Drawn:
        """The last values, each averaged to features and sent through a linear layer, added up."""
        total: Place | None = None
        for place in self.pool[-2:]:
            others = list(range(1, len(self.shape(place))))
            feature = self.pick(others)
            others.remove(feature)
            if others:
                (place,) = self.call(aten.mean.dim, place, others)
            head = self.parameter(3, self.shape(place)[1])
            (output,) = self.call(aten.linear.default, place, head, None)
            total = output if total is None else self.call(aten.add.Tensor, total, output)[0]
        assert total is not None
        return self._numbered(total)

    def _numbered(self, output: Place) -> Drawn:
        """Held tensors behind the input, results behind these."""
        held = {number: len(self._held) + number + 1 for number in self._held}
        moved = {**held, 0: 0} | {n: n + len(held) for n in self._values if n > 0}
        places = {number: Place(new) for number, new in moved.items()}
        steps = []
        for step in self.steps:
            args, kwargs = _filled((step.args, step.kwargs), places)
            steps.append(Step(step.target, args, kwargs, step.results))
        return Drawn(steps, {moved[n]: tensor for n, tensor in self._held.items()}, places[output.number])


Family = Callable[[Drawing, str], list[Place]]


def target_of(name: str) -> Any:
    packet, overload = name.split(".")
    return getattr(getattr(aten, packet), overload)


def as_program(network: Drawn, x: Tensor) -> Program:
    """What reading an export of the network gives, without the export."""
    graph = fx.Graph()
    values: list[Any] = [graph.placeholder("x")]
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    values += [graph.get_attr(name) for name in network.names]
    for step in network.steps:
        args, kwargs = _filled((step.args, step.kwargs), values)
        node = graph.call_function(step.target, args, kwargs)
        node.meta["layer"] = None
        returns = step.target._schema.returns
        if len(returns) == 1 and str(returns[0].type) == "Tensor":
            values.append(node)
        else:
            count = step.results
            values += [graph.call_function(operator.getitem, (node, index)) for index in range(count)]
    graph.output(values[network.output.number])
    for name, node in zip(network.names, values[1:], strict=False):
        node.meta.update(shape=list(tensors[name].shape), dtype=tensors[name].dtype)
    compose(graph)
    trained = frozenset(name for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter))
    inputs = (TensorInfo(name="x", dtype="float32", shape=[None, *x.shape[1:]]),)
    outputs = (TensorInfo(name="output", dtype="", shape=[]),)
    others = frozenset(tensors) - trained
    return check_batch(Program(graph, tensors, trained, others, frozenset(), inputs, outputs, {}))


def draw_network(
    choices: Choices, families: dict[str, Family], wanted: Sequence[str], more: int
) -> tuple[Drawn, Tensor, list[str]]:
    """A network with a call of every `wanted` operator and `more` of any, an input for it, and the wanted operators
    that found no value to suit them."""
    shape = choices.pick([(4, 6, 6), (6, 8), (8,), (2, 4, 4, 4)])
    x = torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(1))
    drawing = Drawing(choices, x)
    start(drawing)
    missed = []
    for name in [*wanted, *(choices.pick(sorted(families)) for _ in range(more))]:
        try:
            _call_one(drawing, families, name)
        except Unfit:
            missed.append(name)
    return drawing.finish(), x, [name for name in missed if name in wanted]


def _call_one(drawing: Drawing, families: dict[str, Family], name: str) -> None:
    """Call it on one of the values, shaped otherwise where it wants other dimensions. What a failed try has called
    stays, unused."""
    for left in reversed(range(16)):
        try:
            if left % 3 != 0:
                reshaped(drawing)
            for place in families[name](drawing, name):
                drawing.keep(place)
            return
        except Unfit:
            if not left:
                raise


def start(drawing: Drawing) -> None:
    """A first layer, so that there are channels."""
    (x,) = drawing.pool
    size, spatial = drawing.shape(x)[1], len(drawing.shape(x)) - 2
    convolution = {2: aten.conv2d.default, 3: aten.conv3d.default}.get(spatial)
    if convolution is None:
        weight = drawing.parameter(8, drawing.shape(x)[-1])
        drawing.keep(drawing.call(aten.linear.default, x, weight, drawing.parameter(8))[0])
    else:
        weight = drawing.parameter(8, size, *[3] * spatial)
        drawing.keep(drawing.call(convolution, x, weight, drawing.parameter(8), [1] * spatial, [1] * spatial)[0])


def reshaped(drawing: Drawing) -> None:
    """One more value, of another rank or order."""
    place = drawing.value()
    shape, dim = drawing.shape(place), drawing.dimension(place)
    changes: list[tuple[Any, ...]] = [(aten.unsqueeze.default, place, dim)]
    if len(shape) > 2:
        changes += [(aten.flatten.using_ints, place, 1), (aten.flatten.using_ints, place, len(shape) - 2)]
        changes += [(aten.transpose.int, place, 1, len(shape) - 1), (aten.mean.dim, place, [dim])]
    if shape[dim] % 2 == 0 and shape[dim] > 2:
        changes += [(aten.unflatten.int, place, dim, [2, shape[dim] // 2])] * 2
        changes += [(aten.unflatten.int, place, dim, [shape[dim] // 2, 2])] * 2
    drawing.keep(drawing.call(*drawing.pick(changes))[0])
