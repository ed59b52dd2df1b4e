"""How a spec asks for fewer bits. Each scheme is a class of its own, told by the field `scheme`.

One more scheme is one class here, named in `Quantize`, and a row in each table that `tests/test_structure.py` compares.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from models.spec_int8 import Int8Choices, QatStep
from models.spec_lowbit import LOW_BIT_STEPS, BinaryStep, CodebookStep, Int4Step, TernaryStep
from models.spec_schemes import AutoStep, DynamicStep, FloatStep, Fp8Step, StoredStep
from models.spec_types import Strict


class QuantizeStep(Int8Choices):
    """Make the weights and activations 8-bit integers (post-training, static, per output channel)."""

    step: Literal["quantize"]
    scheme: Literal["int8"] = "int8"
    method: Literal["ptq"] = "ptq"


def with_a_scheme(value: Any) -> Any:
    """`int8` where the scheme is left out, and its `ptq` where the method is: what tells the classes apart must be
    there."""
    if not isinstance(value, dict):
        return value
    value = {"scheme": "int8", **value}
    return {"method": "ptq", **value} if value["scheme"] == "int8" else value


QUANTIZE_STEPS: tuple[type[Strict], ...] = (
    QuantizeStep,
    QatStep,
    AutoStep,
    DynamicStep,
    StoredStep,
    *LOW_BIT_STEPS,
    FloatStep,
    Fp8Step,
)
Int8 = Annotated[QuantizeStep | QatStep | AutoStep | DynamicStep | StoredStep, Field(discriminator="method")]
Quantize = Annotated[
    Int8 | Int4Step | TernaryStep | BinaryStep | CodebookStep | FloatStep | Fp8Step,
    Field(discriminator="scheme"),
    BeforeValidator(with_a_scheme),
]
"""Every scheme."""


def flatten_choices(schema: dict[str, Any]) -> None:
    """A JSON Schema of choices with choices inside as one list: OpenAPI's `discriminator` cannot say the inner ones,
    and `const` says them all."""
    choices = schema.get("oneOf", [])
    schema["oneOf"] = _flat(choices)
    if any("oneOf" in choice for choice in choices):
        del schema["discriminator"]


def _flat(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [inner for choice in choices for inner in (_flat(choice["oneOf"]) if "oneOf" in choice else [choice])]
