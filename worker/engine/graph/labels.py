"""Labels: an integer for every index of every dimension, and which of them must stay or go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.int64]
Axis: TypeAlias = "Indices | None"
"""The labels of one dimension, one per index; `None` when its size is fixed. Label 0 is an index that must stay."""
Axes: TypeAlias = "list[Axis]"
"""The dimensions of one tensor."""
Value: TypeAlias = "Axes | tuple[Value, ...] | None"
"""What a node gives: one tensor (a list), several (a tuple), or nothing with channels."""

FIXED = "is combined with a tensor of fixed size"


class Refusal(Exception):
    """A rule cannot account for this call: the labels of its inputs freeze. The text says why, for people."""


@dataclass(frozen=True)
class Components:
    """`of[label]` is the smallest label of its component; `frozen` has, for components that must stay, the reason."""

    of: Indices
    frozen: Mapping[int, str]


class Labels:
    """Hands out labels and collects what is learnt about them."""

    def __init__(self, avoided: Mapping[str, frozenset[int]] | None = None) -> None:
        """`avoided` are dimensions, by node, along which channels that are split should not shrink."""
        self.avoided = avoided or {}
        self.choices: list[tuple[str, int, Indices]] = []
        self.count = 1
        self._soft: set[int] = set()
        self._ties: list[Indices] = []
        self._frozen: list[tuple[Indices, str]] = []

    def fresh(self, size: int) -> Indices:
        axis = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return axis

    def fresh_soft(self, size: int) -> Indices:
        """Labels of a dimension that repeats one value (`expand`, `zeros`): any size will do, so real ones win."""
        axis = self.fresh(size)
        self._soft.update(axis.tolist())
        return axis

    def is_soft(self, axis: Indices) -> bool:
        return int(axis.flat[0]) in self._soft

    def is_all_soft(self, axis: Axis) -> bool:
        return axis is not None and self._soft.issuperset(axis.reshape(-1).tolist())

    def tie(self, first: Axis, second: Axis, why: str = FIXED) -> Axis:
        """Pair by pair, indices of `first` and `second` stay or go. A fixed side freezes the other, because `why`."""
        if first is None or second is None:
            self.freeze(second if first is None else first, why)
            return second if first is None else first
        if first.shape != second.shape:
            raise Refusal(f"combines dimensions of {first.size} and {second.size} channels")
        fixed = (first == 0) | (second == 0)
        if fixed.any():
            self.freeze(np.maximum(first, second)[fixed], why)
        self._ties.append(np.stack([first[~fixed], second[~fixed]]))
        return first

    def freeze(self, axis: Axis, why: str) -> None:
        if axis is not None:
            self._frozen.append((axis.reshape(-1), why))

    def freeze_value(self, value: Value, why: str) -> None:
        for axis in axes_of(value):
            self.freeze(axis, why)

    def solve(self) -> Components:
        """Connected components by label propagation with pointer jumping; the first reason given wins."""
        root = np.arange(self.count, dtype=np.int64)
        if self._ties:
            first, second = np.concatenate(self._ties, axis=1)
            while True:
                smallest = np.minimum(root[first], root[second])
                new = root.copy()
                for index in (first, second, root[first], root[second]):
                    np.minimum.at(new, index, smallest)
                new = new[new]
                if np.array_equal(new, root):
                    break
                root = new
        frozen = {0: "its size is fixed"}
        for axis, why in self._frozen:
            for component in np.unique(root[axis]).tolist():
                frozen.setdefault(component, why)
        return Components(root, frozen)


def axes_of(value: Value) -> Iterator[Indices]:
    """Every labelled dimension inside `value`."""
    if isinstance(value, tuple):
        for item in value:
            yield from axes_of(item)
    elif value is not None:
        yield from (axis for axis in value if axis is not None)
