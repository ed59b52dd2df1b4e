"""Values of an ONNX graph that do not depend on the inputs' data, though they may depend on the size of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

BATCHES = (2, 3, 5)
"""The graph is interpreted for each of these at once; what differs comes from the batch. Two points tell how, and the
third shows that it is so."""

TRANSPOSED = "transposed"
"""The form of a matrix that a linear layer holds."""

Sizes = tuple[int, ...]


class PerBatch(tuple[int, ...]):
    """A number for each of BATCHES."""

    __slots__ = ()

    @property
    def constant(self) -> bool:
        return len(set(self)) == 1


@dataclass(eq=False)
class Known:
    """`values` has a tensor for each of BATCHES, the same object where they are equal. `name` is the value's in the
    file.

    `trained`: it is an initializer, or one whose elements were only moved. `right_hand`: every use is as the right-hand
    matrix of a product, so its transpose may stand for it. `forms` are this value in other forms, so that what is used
    twice is one weight in each.
    """

    values: tuple[Tensor, ...]
    name: str
    initializer: bool = False
    trained: bool = False
    right_hand: bool = False
    forms: dict[str, Known] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Sequence[Tensor], name: str, trained: bool = False) -> Known:
        first = values[0]
        if all(_equal(first, value) for value in values[1:]):
            values = [first] * len(BATCHES)
        return cls(tuple(values), name, trained=trained)

    @property
    def constant(self) -> bool:
        return all(value is self.values[0] for value in self.values)

    @property
    def tensor(self) -> Tensor:
        """The value for the first batch; the only one where it is constant."""
        return self.values[0]

    def form(self, kind: str, make: Callable[[Tensor], Tensor]) -> Known:
        """This value, which the batch does not change, in another form; the same one each time."""
        if kind not in self.forms:
            made = make(self.tensor).clone(memory_format=torch.contiguous_format)
            self.forms[kind] = Known((made,) * len(BATCHES), self.name, self.initializer, self.trained)
        return self.forms[kind]

    @property
    def number(self) -> float | int | None:
        """The value where it is one number that the batch does not change."""
        value = self.tensor
        if not self.constant or value.numel() != 1 or value.dtype == torch.bool:
            return None
        return float(value) if value.is_floating_point() else int(value)


Operand = fx.Node | Known


def shapes_of(operand: Operand) -> tuple[Sizes, ...]:
    """The sizes of a tensor for each of BATCHES."""
    values = operand.values if isinstance(operand, Known) else operand.meta["values"]
    return tuple(tuple(value.shape) for value in values)


def shape_of(operand: Operand) -> Sizes:
    """The sizes for the first of BATCHES."""
    return shapes_of(operand)[0]


def dtype_of(operand: Operand) -> torch.dtype:
    value = operand.tensor if isinstance(operand, Known) else operand.meta["values"][0]
    dtype: torch.dtype = value.dtype
    return dtype


def per_batch(shapes: Sequence[Sizes]) -> list[PerBatch]:
    """Sizes of each of BATCHES, dimension by dimension."""
    return [PerBatch(sizes) for sizes in zip(*shapes, strict=True)]


def _equal(first: Tensor, second: Tensor) -> bool:
    if first is second:
        return True
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())
