"""What a person says about a network's file where the file itself leaves it open."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_INPUT_SHAPE = re.compile(r"(?:(?P<name>.+):)?(?P<sizes>[0-9]{1,8}(?:,[0-9]{1,8}){0,7})", re.DOTALL)


def _readable(text: str) -> str:
    match = _INPUT_SHAPE.fullmatch(text)
    if match is None or 0 in map(int, match["sizes"].split(",")):
        raise ValueError("write the sizes with the batch first, as `1,3,224,224`, or `name:1,3,224,224`")
    return text


InputShape = Annotated[str, Field(max_length=600), AfterValidator(_readable)]
"""`1,3,224,224` for the only input, else `name:1,3,224,224`. The first size is the batch, which stays free."""


def _one_for_each(shapes: tuple[str, ...]) -> tuple[str, ...]:
    names = [name for name, _ in map(parse_input_shape, shapes)]
    if len(names) > 1 and None in names:
        raise ValueError("with more than one shape each names its input: `name:1,3,224,224`")
    if len(set(names)) != len(names):
        raise ValueError("give each input one shape")
    return shapes


InputShapes = Annotated[tuple[InputShape, ...], Field(max_length=64), AfterValidator(_one_for_each)]


def parse_input_shape(text: str) -> tuple[str | None, tuple[int, ...]]:
    """The input's name, where one is given, and its sizes with the batch."""
    name, _, sizes = text.rpartition(":")
    return name or None, tuple(map(int, sizes.split(",")))


_ARCHITECTURE = re.compile(r"timm/[a-z0-9_]+(\.[a-z0-9_]+)?|transformers(/[A-Za-z0-9]+)?")


def _named(text: str) -> str:
    if _ARCHITECTURE.fullmatch(text) is None:
        raise ValueError("write `timm/resnet18`, `transformers` or `transformers/BertForSequenceClassification`")
    return text


Architecture = Annotated[str, Field(max_length=200), AfterValidator(_named)]
"""`timm/` and one of its names; or `transformers`, with a class where `config.json` does not name it."""
Classes = Annotated[int, Field(ge=0, le=100_000)]
"""0 for a network without its classifier."""


CLASSES_OF_TIMM = "`num_classes` is for `arch=timm/…`; a folder of transformers has it in its config.json"


def classes_without_timm(arch: str | None, num_classes: int | None) -> bool:
    return num_classes is not None and not (arch or "").startswith("timm/")


class ReadOptions(BaseModel):
    """How to read a network's file. Stored with the network: its inspection and its jobs read it the same way.

    `arch` names the network that the weights in the file belong to; `num_classes` is for networks of timm."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_shape: InputShapes = ()
    arch: Architecture | None = None
    num_classes: Classes | None = None

    @model_validator(mode="after")
    def _classes_of_timm(self) -> Self:
        if classes_without_timm(self.arch, self.num_classes):
            raise ValueError(CLASSES_OF_TIMM)
        return self

    def identify(self, sha256: str) -> str:
        """A digest (64 hex digits) of the network as it is read: of its bytes alone where nothing was said."""
        if self == ReadOptions():
            return sha256
        return hashlib.sha256(f"{sha256} {self.model_dump_json(exclude_defaults=True)}".encode()).hexdigest()


NOTHING_SAID = ReadOptions()
