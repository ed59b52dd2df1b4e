"""What training is refused for before anything runs, and the defaults that follow from other choices."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.inspection import NetworkInspection
from models.rules import check
from models.spec import FinetuneStep, Schedule, Spec
from models.spec_train import may_compile
from tests.models.test_rules import ARRAYS, FROZEN, NORMALISED, RESNET, TOKENS


def problems(network: NetworkInspection, training: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    step = {"step": "finetune"} | training
    spec = Spec.model_validate({"model": "net_1", "data": {"dataset": "dat_1"}, "steps": [step]} | more)
    return [(problem.pointer, problem.message) for problem in check(spec, network, ARRAYS)]


def test_the_rate_the_warm_up_and_what_is_kept_follow_from_other_choices() -> None:
    def of(**chosen: Any) -> tuple[Any, float, str]:
        step = FinetuneStep.model_validate({"step": "finetune"} | chosen)
        assert FinetuneStep.model_validate(step.model_dump(mode="json")) == step
        return step.learning_rate, step.warm_up, step.keep

    assert of() == (5e-4, 0.1, "best")
    assert of(optimizer="sgd") == of(optimizer={"name": "sgd", "momentum": 0}) == (0.01, 0.1, "best")
    assert of(optimizer="sgd", learning_rate="auto", rate_schedule="step") == ("auto", 0.0, "best")
    assert of(regularize={"penalty": "l1"}, warm_up=0.2) == (5e-4, 0.2, "last")
    assert of(regularize={"penalty": "l1"}, keep="best")[2] == "best"
    assert Schedule.model_validate({"rounds": 2, "optimizer": "sgd"}).learning_rate == 0.01


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"patience": 2, "keep": "last"}, "waits for a better epoch"),
        ({"patience": 2, "regularize": {"penalty": "growing"}}, "waits for a better epoch"),
        ({"optimizer": {"name": "sgd", "momentum": 0, "nesterov": True}}, "looks ahead by the momentum"),
        ({"optimizer": {"name": "adamw", "momentum": 0.9}}, "Extra inputs"),
        ({"regularize": {"penalty": "l1", "fraction": 0.5}}, "Extra inputs"),
        ({"regularize": {"penalty": "l1", "strength": 0}}, "greater than 0"),
        ({"learning_rate": "fast"}, "auto"),
        ({"average": 1.0}, "less than 1"),
        ({"augment": {}}, "give `flip` or `shift`"),
        ({"speed": {"precision": "int8"}}, "bfloat16"),
        ({"clip_norm": 0}, "greater than 0"),
    ],
)
def test_what_is_ignored_or_makes_no_sense_is_refused(chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FinetuneStep.model_validate({"step": "finetune"} | chosen)


def test_what_training_does_to_a_network_needs_it_there() -> None:
    assert problems(NORMALISED, {"batch_norm": "freeze", "regularize": {"penalty": "bn_gamma"}}) == []
    ((pointer, message),) = problems(RESNET, {"batch_norm": "freeze"})
    assert (pointer, "no BatchNorm" in message) == ("/steps/0/batch_norm", True)
    ((pointer, message),) = problems(RESNET, {"regularize": {"penalty": "bn_gamma"}})
    assert (pointer, "use `group_lasso`" in message) == ("/steps/0/regularize", True)
    for penalty in ("group_lasso", "growing", "bn_gamma"):
        ((pointer, message),) = problems(FROZEN, {"regularize": {"penalty": penalty}})
        assert (pointer, "use `l1`" in message) == ("/steps/0/regularize", True)
    assert problems(FROZEN, {"regularize": {"penalty": "l1"}}) == []


def test_images_and_gpus_are_needed_where_they_are_asked_for() -> None:
    fast = {"precision": "tf32", "cudnn_autotune": True, "channels_last": True}
    assert problems(RESNET, {"speed": fast, "augment": {"flip": True}}) == []
    assert problems(RESNET, {"speed": "auto"}, device="cpu") == []
    pointers = [pointer for pointer, _ in problems(RESNET, {"speed": fast}, device="cpu")]
    assert pointers == ["/steps/0/speed/precision", "/steps/0/speed/cudnn_autotune"]
    found = problems(TOKENS, {"speed": {"channels_last": True}, "augment": {"shift": 4}})
    assert [pointer for pointer, _ in found[-2:]] == ["/steps/0/augment", "/steps/0/speed/channels_last"]
    assert all("leave it out" in message or "leave `augment` out" in message for _, message in found[-2:])
    maps = {"data": {"dataset": "dat_1", "task": "segmentation"}}
    assert any("would not move along" in message for _, message in problems(RESNET, {"augment": {"shift": 4}}, **maps))


def test_compiled_training_goes_with_one_process_and_without_looks_into_layers() -> None:
    assert problems(RESNET, {"speed": {"compile": True, "precision": "bfloat16"}}) == []
    assert problems(RESNET, {"speed": {"compile": "auto", "processes": 2}}) == []
    [(pointer, message)] = problems(RESNET, {"speed": {"compile": True, "processes": 2}})
    assert (pointer, "/steps/0/speed/processes" in message) == ("/steps/0/speed/compile", True)
    found = problems(RESNET, {"speed": {"compile": True}, "distill": {"features": [{"layer": "conv1"}]}})
    assert ("/steps/0/speed/compile", True) in [(at, "looks into layers" in why) for at, why in found]
    found = problems(TOKENS, {"speed": {"compile": True}})
    assert ("/steps/0/speed/compile", True) in [(at, "compiled look-ups end the engine" in why) for at, why in found]
    qat = {"step": "quantize", "method": "qat", "speed": {"compile": "auto"}}
    with pytest.raises(ValidationError, match=r"leave `speed\.compile` out"):
        Spec.model_validate({"model": "net_1", "data": {"dataset": "dat_1"}, "steps": [qat]})
    few_bits = {"step": "quantize", "scheme": "ternary", "epochs": 1, "speed": {"compile": True}}
    with pytest.raises(ValidationError, match=r"leave `speed\.compile` out"):
        Spec.model_validate({"model": "net_1", "data": {"dataset": "dat_1"}, "steps": [few_bits]})
    few_bits["speed"] = {"compile": "auto"}
    spec = Spec.model_validate({"model": "net_1", "data": {"dataset": "dat_1"}, "steps": [few_bits]})
    assert not may_compile(spec.steps or [])
