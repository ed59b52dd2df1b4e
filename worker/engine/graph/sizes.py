"""The sizes of a network as polynomials in how many units each group keeps; `models.sizes` says what they are for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
from torch import fx

from models.sizes import Polynomials, Sizes, Term
from worker.engine.graph import shapes
from worker.engine.graph.channels import Channels, tensor_named
from worker.engine.graph.cost import batch_of, node_cost
from worker.engine.graph.labels import Axis
from worker.engine.graph.ops.sizing import Sizing


class Polynomial:
    """A number that depends on what the groups keep. `terms` maps sorted groups, repeated for powers, to coefficients.
    It is added and multiplied like an integer, so cost rules need not know."""

    def __init__(self, terms: dict[tuple[int, ...], int]) -> None:
        self.terms = {groups: coefficient for groups, coefficient in terms.items() if coefficient}

    def __add__(self, other: Polynomial | int) -> Polynomial:
        terms = dict(self.terms)
        for groups, coefficient in _terms(other).items():
            terms[groups] = terms.get(groups, 0) + coefficient
        return Polynomial(terms)

    def __mul__(self, other: Polynomial | int) -> Polynomial:
        terms: dict[tuple[int, ...], int] = {}
        for first, factor in self.terms.items():
            for second, coefficient in _terms(other).items():
                groups = tuple(sorted((*first, *second)))
                terms[groups] = terms.get(groups, 0) + factor * coefficient
        return Polynomial(terms)

    __radd__, __rmul__ = __add__, __mul__


def _terms(number: Polynomial | int) -> dict[tuple[int, ...], int]:
    return number.terms if isinstance(number, Polynomial) else {(): number}


def sizes_of_network(channels: Channels) -> Sizes:
    """The polynomials of the network that was analysed."""
    most, least = (_polynomials(_Symbolic(channels, extreme)) for extreme in (max, min))
    return Sizes(most=most, least=None if least == most else least)


class _Symbolic:
    """Sizes as cost rules ask for them. Where units of a group have different numbers of indices on a dimension, each
    counts as the `extreme` one."""

    def __init__(self, channels: Channels, extreme: Callable[[list[int]], int]) -> None:
        self.channels = channels
        self._extreme = extreme
        self._groups = np.full(len(channels.components.of), -1, dtype=np.int64)
        for place, group in enumerate(channels.groups):
            self._groups[list(group.units)] = place
        self._known: dict[bytes, Polynomial] = {}

    def sizes(self, node: fx.Node) -> tuple[Polynomial, ...]:
        value = self.channels.values[node.name]
        if not isinstance(value, list):
            raise TypeError(f"{node.name} is not one tensor")
        return tuple(self._size(size, axis) for size, axis in zip(shapes.sizes_of(node), value, strict=True))

    def parameter(self, name: str) -> tuple[Polynomial, ...]:
        shape = tensor_named(self.channels.graph, name).shape
        axes = self.channels.parameters.get(name, [None] * len(shape))
        return tuple(self._size(size, axis) for size, axis in zip(shape, axes, strict=True))

    def _size(self, size: int, axis: Axis) -> Polynomial:
        if axis is None:
            return Polynomial({(): size})
        units = self.channels.units_of(axis)
        known = units.tobytes()
        if known not in self._known:
            self._known[known] = self._count(units)
        return self._known[known]

    def _count(self, units: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Polynomial:
        terms: dict[tuple[int, ...], int] = {(): int(np.count_nonzero(self._groups[units] < 0))}
        found, counts = np.unique(units, return_counts=True)
        owners = self._groups[found]
        for place in np.unique(owners[owners >= 0]).tolist():
            own = counts[owners == place].tolist()
            absent = len(self.channels.groups[place].units) - len(own)
            terms[(place,)] = self._extreme([*own, *([0] if absent else [])])
        return Polynomial(terms)


def _polynomials(sizing: _Symbolic) -> Polynomials:
    graph = sizing.channels.graph
    parameters, stored, macs = Polynomial({}), Polynomial({}), Polynomial({})
    for name, tensor in graph.named_parameters():
        count = math.prod(sizing.parameter(name), start=Polynomial({(): 1}))
        parameters += count
        stored += count * tensor.element_size()
    for name, buffer in graph.named_buffers():
        stored += math.prod(sizing.parameter(name), start=Polynomial({(): 1})) * buffer.element_size()
    for node in graph.graph.nodes:
        macs += node_cost(graph, node, cast(Sizing, sizing))
    batch = batch_of(graph)
    return Polynomials(parameters=_listed(parameters), macs=_listed(macs, batch), bytes=_listed(stored))


def _listed(polynomial: Polynomial, batch: int = 1) -> tuple[Term, ...]:
    return tuple((coefficient // batch, groups) for groups, coefficient in sorted(polynomial.terms.items()))
