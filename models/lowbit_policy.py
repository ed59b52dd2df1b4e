"""Which weights a `quantize` step of few bits gives how many, and what that takes. No torch: the dry run counts bytes
with the same arithmetic that the engine stores by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from models.spec_lowbit import BLOCKS, CodebookStep, Int4Step, LowBitScheme, LowBitStep, said_of

EMBEDDINGS = ("Embedding",)
LOW_BIT_KINDS = (
    "Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", *EMBEDDINGS,
)  # fmt: skip
"""Kinds of layers whose weight can be stored in few bits."""
INT8_BITS = 8
_HALF, _SINGLE = 2, 4
_TRITS_A_BYTE = 5


@dataclass(frozen=True)
class Coding:
    """How one weight is stored. `group_size` is `None` for a scale an output. A codebook has `2**bits` entries of
    `dimension` weights."""

    scheme: Literal["integers", "ternary", "binary", "codebook"]
    bits: int = 1
    group_size: int | None = None
    symmetric: bool = True
    range: Literal["minmax", "mse"] = "minmax"
    dimension: int = 1

    def stored_bytes(self, shape: Sequence[int]) -> int:
        """Of a weight of this shape: codes and tables, before anything is deflated."""
        count = math.prod(shape)
        if self.scheme == "codebook":
            vectors = math.ceil(count / self.dimension)
            table = min(1 << self.bits, vectors) * self.dimension * _SINGLE
            return math.ceil(vectors * self.bits / 8) + table
        codes = math.ceil(count / _TRITS_A_BYTE) if self.scheme == "ternary" else math.ceil(count * self.bits / 8)
        outputs = shape[0]
        groups = outputs * (math.ceil(count / outputs / self.group_size) if self.group_size else 1)
        return codes + groups * (_HALF if self.symmetric else _HALF + 1) + _SINGLE


EIGHT_BITS = Coding("integers", bits=INT8_BITS)


def coding_of(step: LowBitStep, name: str, kind: str, *, at_an_end: bool) -> Coding | str:
    """How the weight of a layer is to be stored, or why it stays as it is. `at_an_end`: the layer is the first or the
    last that could be stored in few bits."""
    if kind not in LOW_BIT_KINDS:
        return f"{kind} has no weight that is stored in few bits"
    choice = next((choice for choice in step.layers if fnmatchcase(name, choice.match)), None)
    if choice is not None and choice.skip:
        return "skipped"
    if choice is None:
        if (at_an_end or kind in EMBEDDINGS) and step.first_and_last != "same":
            return EIGHT_BITS if step.first_and_last == "int8" else "first or last"
        return _coding(step.scheme, said_of(step))
    scheme = choice.scheme or step.scheme
    base = said_of(step) if scheme == step.scheme else _DEFAULTS[scheme]
    given = {field: getattr(choice, field) for field in base if getattr(choice, field) is not None}
    return _coding(scheme, base | given)


def _coding(scheme: LowBitScheme, fields: dict[str, Any]) -> Coding:
    return Coding("integers" if scheme == "int4" else scheme, **fields)


_DEFAULTS: dict[LowBitScheme, dict[str, Any]] = {
    "int4": said_of(Int4Step(step="quantize", scheme="int4")),
    "ternary": {},
    "binary": {},
    "codebook": said_of(CodebookStep(step="quantize", scheme="codebook")),
}


def goes_with_blocks(coding: Coding) -> bool:
    """Whether ONNX Runtime multiplies 8-bit integers by a linear layer's weight that is stored so."""
    return coding.scheme == "integers" and coding.group_size in BLOCKS.get(coding.bits, ())


def ends(layers: Sequence[tuple[str, str]]) -> frozenset[str]:
    """Of (name, kind) in the order they run: the first and the last that could be stored in few bits."""
    names = [name for name, kind in layers if kind in LOW_BIT_KINDS and kind not in EMBEDDINGS]
    return frozenset(names[:1] + names[-1:])


def is_worth_it(coding: Coding, shape: Sequence[int]) -> bool:
    """Whether it takes fewer bytes than the floats."""
    return coding.stored_bytes(shape) < math.prod(shape) * _SINGLE
