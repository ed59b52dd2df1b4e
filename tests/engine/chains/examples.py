"""One small example of every step and scheme, from which chains are made.

A new step, or a scheme of one, is one row here; `test_chains.py` says when one is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from models.spec import (
    AutoStep,
    DynamicStep,
    FactorizeStep,
    FinetuneStep,
    FloatStep,
    Fp8Step,
    PruneStep,
    QatStep,
    QuantizeStep,
    SensitivityStep,
    SparsifyStep,
    StoredStep,
)
from models.spec_lowbit import BinaryStep, CodebookStep, Int4Step, TernaryStep
from models.spec_types import Strict

Fields = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """`fields` on any of the networks; `again` where the same step came before: it asks for more. `not_after` are steps
    that may come before another of its kind, but not before this one."""

    step: type[Strict]
    fields: Fields
    again: Fields | None = None
    not_after: frozenset[str] = frozenset()


EXAMPLES: dict[str, Example] = {
    "prune": Example(PruneStep, {"step": "prune", "amount": {"channels": 0.3}, "round_to": 2}),
    "sparsify": Example(SparsifyStep, {"step": "sparsify", "amount": 0.4}, again={"step": "sparsify", "amount": 0.6}),
    "factorize": Example(
        FactorizeStep,
        {"step": "factorize", "rank": {"ratio": 0.4}, "round_to": 2},
        again={"step": "factorize", "amount": {"parameters": 0.1}, "round_to": 1},
    ),
    "finetune": Example(FinetuneStep, {"step": "finetune", "epochs": 1}),
    "finetune sparse": Example(
        FinetuneStep, {"step": "finetune", "epochs": 1, "regularize": {"penalty": "group_lasso"}}
    ),
    "sensitivity": Example(SensitivityStep, {"step": "sensitivity", "amounts": [0.5], "validation_samples": 16}),
    "int8": Example(QuantizeStep, {"step": "quantize", "calibration_samples": 32}),
    "int8 qat": Example(QatStep, {"step": "quantize", "method": "qat", "calibration_samples": 32, "epochs": 1}),
    "int8 dynamic": Example(DynamicStep, {"step": "quantize", "method": "dynamic"}),
    "int8 weights": Example(StoredStep, {"step": "quantize", "method": "weights"}),
    "int8 auto": Example(AutoStep, {"step": "quantize", "method": "auto", "calibration_samples": 32}),
    "fp16": Example(FloatStep, {"step": "quantize", "scheme": "fp16"}),
    "bf16": Example(FloatStep, {"step": "quantize", "scheme": "bf16"}),
    "fp8": Example(Fp8Step, {"step": "quantize", "scheme": "fp8"}),
    "int4": Example(Int4Step, {"step": "quantize", "scheme": "int4", "group_size": 16}),
    "int4 by int8": Example(Int4Step, {"step": "quantize", "scheme": "int4", "group_size": 16, "activations": "int8"}),
    "ternary": Example(TernaryStep, {"step": "quantize", "scheme": "ternary", "epochs": 1}),
    "binary": Example(
        BinaryStep, {"step": "quantize", "scheme": "binary", "epochs": 1}, not_after=frozenset({"sparsify"})
    ),
    "codebook": Example(CodebookStep, {"step": "quantize", "scheme": "codebook", "bits": 2}),
}

_TELLING = ("scheme", "method")
"""Fields of `quantize` that make one step many."""


def kinds_of(step: type[Strict]) -> Iterator[tuple[str, ...]]:
    """Every combination of what the step's class lets `scheme` and `method` be; once nothing where it has neither."""
    fields = step.model_fields
    if get_args(fields["step"].annotation) != ("quantize",):
        yield ()
        return
    combinations: list[tuple[str, ...]] = [()]
    for name in _TELLING:
        if name in fields:
            combinations = [
                (*so_far, str(value)) for so_far in combinations for value in get_args(fields[name].annotation)
            ]
    yield from combinations


def kind_of(example: Example) -> tuple[str, ...]:
    """The one of `kinds_of` that the example is."""
    built = example.step.model_validate(example.fields)
    if example.fields["step"] != "quantize":
        return ()
    return tuple(str(getattr(built, name)) for name in _TELLING if name in type(built).model_fields)


def chain(*names: str) -> list[Fields]:
    """The steps of these examples, in this order."""
    steps: list[Fields] = []
    for place, name in enumerate(names):
        example = EXAMPLES[name]
        came_before = any(EXAMPLES[earlier].step is example.step for earlier in names[:place])
        steps.append(example.again if came_before and example.again is not None else example.fields)
    return steps
