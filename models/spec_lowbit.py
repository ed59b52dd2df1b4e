"""How a spec asks for weights of few bits: integers in groups, ternary, binary, or entries of a codebook."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from models.spec_train import Training
from models.spec_types import Floor, Glob, Strict

LowBitScheme = Literal["int4", "ternary", "binary", "codebook"]
WeightRange = Literal["minmax", "mse"]
Bits = Annotated[int, Field(ge=2, le=6)]
IndexBits = Annotated[int, Field(ge=1, le=8)]
GroupSize = Annotated[int, Field(ge=4, le=65536)]
Dimension = Annotated[int, Field(ge=1, le=16)]

BLOCKS: dict[int, tuple[int, ...]] = {2: (32, 64, 128), 4: (16, 32, 64, 128, 256)}
"""Bits of a weight, and how many may share a scale, so that ONNX Runtime's MatMulNBits multiplies 8-bit integers by
them (measured: with 2 bits and 16 or 256 it makes floats of them)."""

FIELDS: dict[LowBitScheme, tuple[str, ...]] = {
    "int4": ("bits", "group_size", "symmetric", "range"),
    "ternary": (),
    "binary": (),
    "codebook": ("bits", "dimension"),
}
"""What can be said of each scheme, for the step and for single layers."""


class LowBitLayer(Strict):
    """What is different for the layers whose names match a glob; the first choice that matches a layer counts."""

    match: Glob
    skip: Literal[True] | None = Field(default=None, description="The layer stays as it is.")
    scheme: LowBitScheme | None = Field(default=None, description="Default: the step's, with what the step says of it.")
    bits: IndexBits | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None
    range: WeightRange | None = None
    dimension: Dimension | None = None

    @model_validator(mode="after")
    def _says_something(self) -> LowBitLayer:
        said = {name for name in type(self).model_fields if name != "match" and getattr(self, name) is not None}
        if not said:
            raise ValueError("give skip, a scheme, or what is different in it")
        if "skip" in said and len(said) > 1:
            raise ValueError("a layer that is skipped has no scheme and nothing to say of one")
        return self


class LowBitStep(Training):
    """What schemes for weights of few bits have in common. Biases, norms and recurrent layers stay as they are, and
    so do activations, unless the step says otherwise."""

    compiles: ClassVar[bool] = False
    step: Literal["quantize"]
    scheme: LowBitScheme
    epochs: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="Epochs of training with the weights as they will be delivered; 0: none, and no data."
    )
    first_and_last: Literal["same", "int8", "float"] = Field(
        default="same",
        description="The first and the last layer in the order they run, and embeddings: like the others, 8-bit "
        "integers (one scale an output), or as they are.",
    )
    floor: Floor | None = Field(
        default=None,
        description="Store layers as 8-bit integers (one scale an output) until no more than this is lost, as few as "
        "needed and those first that alone add most noise; before any training.",
    )
    layers: Annotated[list[LowBitLayer], Field(max_length=1000)] = Field(default=[])

    @model_validator(mode="after")
    def _trains_or_says_nothing_of_it(self) -> LowBitStep:
        if self.epochs == 0:
            plain = Training()
            for name in Training.model_fields:
                if getattr(self, name) != getattr(plain, name):
                    raise ValueError(f"`{name}` is about training, and `epochs` is 0: give epochs, or leave it out")
        return self

    @model_validator(mode="after")
    def _trains_as_it_is(self) -> LowBitStep:
        if self.speed.compile is True:
            raise ValueError("weights that are made as they are needed are not compiled: leave `speed.compile` out")
        return self

    @model_validator(mode="after")
    def _draws_nothing_to_zero(self) -> LowBitStep:
        if self.regularize is not None:
            raise ValueError("`regularize` prepares a `prune` or `sparsify` step, and none follows: leave it out")
        return self

    @model_validator(mode="after")
    def _layers_fit_their_scheme(self) -> LowBitStep:
        for choice in self.layers:
            scheme = choice.scheme or self.scheme
            for name in ("bits", "group_size", "symmetric", "range", "dimension"):
                if getattr(choice, name) is not None and name not in FIELDS[scheme]:
                    raise ValueError(f"{choice.match!r}: the scheme {scheme} has no `{name}`")
            if scheme == "int4" and choice.bits is not None and not 2 <= choice.bits <= 6:
                raise ValueError(f"{choice.match!r}: the scheme int4 has 2 to 6 bits")
        return self


class Int4Step(LowBitStep):
    """Weights as integers of 4 bits (or 2 to 6), with one scale for each group along a layer's inputs."""

    scheme: Literal["int4"]
    bits: Bits = 4
    group_size: GroupSize | None = Field(
        default=64, description="Weights that share a scale, side by side along the inputs; null: a whole output."
    )
    symmetric: bool = Field(default=True, description="false: a zero point for each group as well.")
    range: WeightRange = Field(
        default="mse", description="What a group's integers span: its extremes, or what loses least (mean square)."
    )
    activations: Literal["float", "int8"] = Field(
        default="float",
        description="int8: what linear layers multiply their weights with becomes 8-bit integers at run time, one "
        "scale for each `group_size` of them, and ONNX Runtime multiplies integers by weights that stay in 4 (or 2) "
        "bits in memory: smaller, and faster for one row or a few. Other layers stay as they are.",
    )

    @model_validator(mode="after")
    def _groups_are_blocks(self) -> Int4Step:
        if self.activations == "int8" and self.group_size not in BLOCKS.get(self.bits, ()):
            known = "; ".join(f"{bits}: {', '.join(map(str, sizes))}" for bits, sizes in BLOCKS.items())
            raise ValueError(f"8-bit activations need `bits` and a `group_size` that the kernel knows ({known})")
        return self


class TernaryStep(LowBitStep):
    """Weights -s, 0 and s, with one s for each output (Li and Liu, 2016); five in a byte. Made to be trained."""

    scheme: Literal["ternary"]
    first_and_last: Literal["same", "int8", "float"] = "int8"


class BinaryStep(LowBitStep):
    """Weights -s and s, with one s for each output (Rastegari et al., 2016); eight in a byte. Made to be trained."""

    scheme: Literal["binary"]
    first_and_last: Literal["same", "int8", "float"] = "int8"


class CodebookStep(LowBitStep):
    """Weights as places in a table of each layer's own, found by k-means: single weights (Han et al., 2016) or so many
    side by side (Gong et al., 2014; Stock et al., 2020)."""

    scheme: Literal["codebook"]
    bits: IndexBits = Field(default=4, description="Of a place: a table has 2 to the power of that many entries.")
    dimension: Dimension = Field(default=1, description="Weights of one entry: `bits / dimension` bits a weight.")


LOW_BIT_STEPS: tuple[type[LowBitStep], ...] = (Int4Step, TernaryStep, BinaryStep, CodebookStep)


def said_of(step: LowBitStep) -> dict[str, Any]:
    """The fields of the step's own scheme."""
    return {name: getattr(step, name) for name in FIELDS[step.scheme]}
