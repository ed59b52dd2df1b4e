"""What a `quantize` step to static 8-bit integers may say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.rules import check, resolve
from models.spec import QatStep, QuantizeStep
from tests.models.test_rules import ARRAYS, QUANTIZE, RESNET, spec

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a percentile that nothing uses": (
        {"percentile": 99.0},
        "percentile is used by the ranges `percentile` and `auto` only: choose one or leave it out",
    ),
    "a layer that says nothing": ({"layers": [{"match": "fc"}]}, "give skip, ranges, symmetric or weight_ranges"),
    "a layer that is skipped and has ranges": (
        {"layers": [{"match": "fc", "skip": True, "ranges": "mse"}]},
        "a layer that is skipped has no ranges, symmetric or weight_ranges",
    ),
    "ranges that do not exist": ({"ranges": "kl"}, "'minmax', 'entropy', 'percentile', 'mse' or 'auto'"),
    "a percentile of everything": ({"ranges": "percentile", "percentile": 100}, "less than 100"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused(name: str) -> None:
    fields, message = REFUSED[name]
    with pytest.raises(ValidationError) as caught:
        QuantizeStep.model_validate(QUANTIZE | fields)
    assert message in str(caught.value)


QAT = {**QUANTIZE, "method": "qat"}
UNTRAINED: dict[str, tuple[dict[str, Any], str]] = {
    "a penalty": ({"regularize": {"penalty": "l1"}}, "nothing is cut after `quantize`"),
    "the last epoch": ({"keep": "last"}, "the better of the network before and after training is kept"),
    "fewer digits": ({"speed": {"precision": "bfloat16"}}, "8 bits are rounded in float32 alone"),
}


@pytest.mark.parametrize("name", UNTRAINED)
def test_what_training_in_8_bits_has_no_use_for_is_refused(name: str) -> None:
    fields, message = UNTRAINED[name]
    with pytest.raises(ValidationError) as caught:
        QatStep.model_validate(QAT | fields)
    assert message in str(caught.value)


def test_training_in_8_bits_is_gentle_and_its_loss_follows_the_data() -> None:
    resolved = resolve(spec([QAT], data={}), RESNET, ARRAYS)
    assert resolved.steps is not None
    (step,) = resolved.steps
    assert isinstance(step, QatStep)
    assert (step.learning_rate, step.loss, step.epochs) == (1e-4, "both", 3)
    assert QatStep.model_validate(QAT | {"optimizer": "sgd"}).learning_rate == 0.01
    assert resolve(resolved, RESNET, ARRAYS) == resolved
    (problem,) = check(spec([QAT]), RESNET, None)
    assert "needs data to calibrate with and to train on" in problem.message


def test_the_training_of_a_step_without_it_is_refused() -> None:
    with pytest.raises(ValidationError):
        QuantizeStep.model_validate(QUANTIZE | {"epochs": 3})


@pytest.mark.parametrize(
    "fields", [{"ranges": "auto"}, {"ranges": "percentile"}, {"layers": [{"match": "fc", "ranges": "percentile"}]}]
)
def test_the_percentile_is_filled_in_where_it_is_used(fields: dict[str, Any]) -> None:
    resolved = resolve(spec([QUANTIZE | fields], data={}), RESNET, ARRAYS)
    assert resolved.steps is not None
    (step,) = resolved.steps
    assert isinstance(step, QuantizeStep)
    assert step.percentile == 99.99
    assert resolve(resolved, RESNET, ARRAYS) == resolved


def test_the_first_choice_that_matches_a_layer_counts() -> None:
    step = QuantizeStep.model_validate(
        QUANTIZE | {"layers": [{"match": "fc", "ranges": "mse"}, {"match": "*", "skip": True}]}
    )
    assert not step.is_skipped("fc")
    assert step.is_skipped("conv1")
    assert check(spec([step.model_dump()], data={}), RESNET, ARRAYS) == []
