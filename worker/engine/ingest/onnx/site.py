"""One node of an ONNX graph while it is translated: its inputs, its attributes, what it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import AttributeProto, NodeProto
from onnx.defs import OpSchema
from torch import Tensor, fx
from torch._ops import OpOverload

from models.errors import Failure
from worker.engine.ingest.onnx.builder import Builder
from worker.engine.ingest.onnx.known import BATCHES, Known, Operand, PerBatch, Sizes, per_batch, shape_of, shapes_of
from worker.engine.ingest.onnx.tensors import dtype_of_type, read_tensor
from worker.engine.ingest.rejected import rejected, shown

Inputs = list["Operand | None"]


class Site:
    """What a translation sees. Whatever it does not ask for is refused afterwards: nothing of a file is passed over.

    `inputs` are in the schema's order, None where left out.
    """

    def __init__(
        self, builder: Builder, node: NodeProto, schema: OpSchema, opset: int, inputs: Inputs, layer: str
    ) -> None:
        self.builder, self.node, self.opset, self.layer = builder, node, opset, layer
        self.kind: str = node.op_type
        self.results: list[str] = list(node.output)
        self._schema = schema
        self._inputs = inputs
        self._attributes = {attribute.name: attribute for attribute in node.attribute}
        self._taken: set[object] = set()

    # Inputs

    def operand(self, place: int) -> Operand:
        found = self.optional(place)
        if found is None:
            raise self.refuse(f"input {place} is missing")
        return found

    def optional(self, place: int) -> Operand | None:
        self._taken.add(place)
        return self._inputs[place] if place < len(self._inputs) else None

    def operands(self) -> list[Operand]:
        return [self.operand(place) for place in range(len(self._inputs))]

    def known(self, place: int) -> Known:
        """An input that must not depend on the data."""
        found = self.operand(place)
        if not isinstance(found, Known):
            raise self.refuse(
                f"its {self._input_name(place)} is computed from the inputs, so sizes or places are not fixed"
            )
        return found

    def constant(self, place: int) -> Tensor | None:
        """An optional input that must not depend on the data nor the batch."""
        if self.optional(place) is None:
            return None
        known = self.known(place)
        if not known.constant:
            raise self.refuse(f"its {self._input_name(place)} changes with the batch")
        return known.tensor

    def integers(self, place: int) -> list[int] | None:
        """Such an input as a list of numbers."""
        value = self.constant(place)
        return None if value is None else [int(number) for number in value.reshape(-1).tolist()]

    def sizes(self, place: int) -> list[PerBatch]:
        """Numbers that may depend on the batch."""
        values = self.known(place).values
        if len({value.numel() for value in values}) > 1:
            raise self.refuse(f"the length of its {self._input_name(place)} changes with the batch")
        return per_batch([tuple(int(number) for number in value.reshape(-1).tolist()) for value in values])

    def axes(self, place: int) -> list[int] | None:
        """`axes`: an attribute before opset 13 or so, an input since."""
        return self.integers(place) if "axes" not in self._schema.attributes else self.maybe_integers("axes")

    def _input_name(self, place: int) -> str:
        formal = self._schema.inputs
        return f"`{formal[min(place, len(formal) - 1)].name}`"

    # Attributes

    def _attribute(self, name: str) -> AttributeProto | None:
        """What is given, else the schema's default of this opset."""
        self._taken.add(name)
        own: AttributeProto | None = self._attributes.get(name)
        if own is not None:
            return own
        formal = self._schema.attributes.get(name)
        if formal is None or formal.default_value.type == AttributeProto.UNDEFINED:
            return None
        default: AttributeProto = formal.default_value
        return default

    def has(self, name: str) -> bool:
        """Whether the schema of this opset knows the attribute."""
        return name in self._schema.attributes

    def given(self, name: str) -> bool:
        self._taken.add(name)
        return name in self._attributes

    def integer(self, name: str) -> int:
        return int(self._needed(name).i)

    def flag(self, name: str) -> bool:
        return self.integer(name) != 0

    def real(self, name: str) -> float:
        return float(self._needed(name).f)

    def text(self, name: str) -> str:
        return self._needed(name).s.decode("ascii", "replace")

    def maybe_text(self, name: str) -> str | None:
        found = self._attribute(name)
        return None if found is None else found.s.decode("ascii", "replace")

    def maybe_integer(self, name: str) -> int | None:
        found = self._attribute(name)
        return None if found is None else int(found.i)

    def maybe_integers(self, name: str) -> list[int] | None:
        found = self._attribute(name)
        return None if found is None else [int(number) for number in found.ints]

    def maybe_real(self, name: str) -> float | None:
        found = self._attribute(name)
        return None if found is None else float(found.f)

    def maybe_reals(self, name: str) -> list[float] | None:
        found = self._attribute(name)
        return None if found is None else [float(number) for number in found.floats]

    def maybe_tensor(self, name: str) -> Tensor | None:
        found = self._attribute(name)
        return None if found is None else self.builder.widen(read_tensor(found.t))

    def element_type(self, name: str) -> torch.dtype:
        """The element type that an attribute names."""
        return self.builder.element_type(dtype_of_type(self.integer(name), f"the result of {shown(self.layer)}"))

    def maybe_graph(self, name: str) -> onnx.GraphProto | None:
        found = self._attribute(name)
        return None if found is None else found.g

    def texts(self, name: str) -> list[str]:
        found = self._attribute(name)
        return [] if found is None else [text.decode("ascii", "replace") for text in found.strings]

    def _needed(self, name: str) -> AttributeProto:
        found = self._attribute(name)
        if found is None:
            raise self.refuse(f"it has no attribute `{name}`")
        return found

    def must_be(self, name: str, *allowed: object) -> None:
        """Refuse an attribute that has another value than the ones that are read."""
        found = self._attribute(name)
        if found is None:
            return
        value = onnx.helper.get_attribute_value(found)
        value = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        if value not in allowed:
            raise self.refuse(f"its `{name}` is {shown(str(value))}")

    # Results

    def emit(self, target: OpOverload, *arguments: Any, **keywords: Any) -> Operand:
        """The result of an ATen operator."""
        made: Operand = self._call(target, arguments, keywords)
        return made

    def emit_several(self, target: OpOverload, *arguments: Any, **keywords: Any) -> list[Operand]:
        """The results of an ATen operator that has several."""
        made: list[Operand] = self._call(target, arguments, keywords)
        return made

    def _call(self, target: OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        name = self.results[0] if self.results else self.layer
        return self.builder.call(target, arguments, keywords, self.layer, name)

    def compute(self, values: list[Tensor]) -> Known:
        """A known value from its tensors for BATCHES."""
        return Known.of(values, self.results[0])

    def parameter(self, known: Operand, leaf: str) -> fx.Node:
        """A weight of this layer, as a parameter named `leaf`."""
        if isinstance(known, fx.Node):
            return known
        return self.builder.attach(known, self.layer, leaf)

    def statistic(self, place: int, leaf: str) -> fx.Node:
        """An input that training updates without a gradient."""
        return self.builder.attach(self.known(place), self.layer, leaf, buffer=True)

    def reshape(self, operand: Operand, shapes: list[Sizes]) -> Operand:
        """The operand in the sizes given for each of BATCHES."""
        if list(shapes_of(operand)) == shapes:
            return operand
        wanted: list[Any] = per_batch(shapes)
        varying = [dim for dim, size in enumerate(wanted) if not size.constant]
        sizes = [size[0] if size.constant else size for size in wanted]
        if len(varying) == 1:
            sizes[varying[0]] = -1
        return self.emit(torch.ops.aten.reshape.default, operand, sizes)

    def free_batch(self, wanted: list[PerBatch], shapes: Sequence[Sizes]) -> list[PerBatch]:
        """Sizes asked for, without the batch that a file for one size of the batch writes down as a number.

        Where dimension 0 is the batch already, the number stands for it. Whether it really did is tried afterwards.
        """
        batch = PerBatch(BATCHES)
        if wanted and set(wanted[0]) == {self.builder.fixed_batch} and per_batch(shapes)[:1] == [batch]:
            return [batch, *wanted[1:]]
        return wanted

    def rank(self, operand: Operand) -> int:
        return len(shape_of(operand))

    def axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise self.refuse(f"axis {axis} is none of {rank} dimensions")
        return axis % rank if rank else 0

    def fixed_sizes(self, operand: Operand, start: int = 0) -> list[int]:
        """Sizes from dimension `start` on, which must not change with the batch."""
        sizes = per_batch(shapes_of(operand))[start:]
        if not all(size.constant for size in sizes):
            raise self.refuse("it works along the batch")
        return [size[0] for size in sizes]

    def refuse(self, message: str) -> Failure:
        return rejected(f"operator {shown(self.kind)[1:-1]} in {shown(self.layer)}: {message}", self.layer)

    def check_all_taken(self) -> None:
        """Raises `Failure` when the file says something that the translation did not look at."""
        for place, given in enumerate(self._inputs):
            if given is not None and place not in self._taken:
                raise self.refuse(f"its input {self._input_name(place)} is not read")
        for name in self._attributes:
            if name not in self._taken:
                raise self.refuse(f"its attribute {shown(name)} is not read")
