"""What distillation is refused for at submit: teachers, and layers to learn from."""

from __future__ import annotations

from typing import Any

import pytest

from models.checkpoints import checkpoint_keys
from models.inspection import NetworkInspection
from models.rules import check
from models.spec import Spec
from models.spec_train import teacher_ids
from tests.models.test_rules import ARRAYS, RESNET, layer, spec, tensor

TEACHER = RESNET.model_copy(
    update={
        "inputs": [tensor("image", "float32", None, 3, None, None)],
        "layers": [layer("stem", "Conv2d", [64, 3, 3, 3], "g0"), layer("conv1", "Conv2d", [64, 3, 3, 3], "g0")],
    }
)
TEACHERS = {"net_2": TEACHER}
ROUNDS: dict[str, Any] = {"step": "prune", "amount": {"channels": 0.5}}


def finetune(loss: str | None = None, /, **distill: Any) -> dict[str, Any]:
    return {"step": "finetune", "loss": loss, "distill": distill}


def test_a_teacher_may_name_its_tensors_as_it_likes_and_leave_sizes_open() -> None:
    assert (
        check(
            spec([finetune(None, **{"from": "net_2", "features": [{"layer": "conv*"}]})], data={}),
            RESNET,
            ARRAYS,
            TEACHERS,
        )
        == []
    )


def with_outputs(*outputs: Any) -> dict[str, NetworkInspection]:
    return {"net_2": TEACHER.model_copy(update={"outputs": list(outputs)})}


REFUSED: dict[str, tuple[dict[str, Any], dict[str, NetworkInspection], str, str]] = {
    "a teacher that is not there": (
        finetune(**{"from": "net_3"}),
        TEACHERS,
        "/steps/0/distill/from",
        "There is no network 'net_3' here: name `original` or one that is given.",
    ),
    "a teacher of other classes": (
        finetune(**{"from": "net_2"}),
        with_outputs(tensor("logits", "float32", None, 12), RESNET.outputs[1]),
        "/steps/0/distill/from",
        "The teacher's outputs are 'logits' float32 [N, 12], 'features' float32 [N, 64] and the network's are 'logits' "
        "float32 [N, 10], 'features' float32 [N, 64]: a teacher takes and gives the same, in the same order.",
    ),
    "a teacher of fewer outputs": (
        finetune(**{"from": "net_2"}),
        with_outputs(RESNET.outputs[0]),
        "/steps/0/distill/from",
        "a teacher takes and gives the same",
    ),
    "a teacher that nobody asks": (
        finetune("task", **{"from": "net_2"}),
        TEACHERS,
        "/steps/0/distill/from",
        "The loss 'task' asks no teacher: use `both` or `distill`, or leave this out.",
    ),
    "features that nobody asks for": (
        finetune("task", features=[{"layer": "conv1"}]),
        {},
        "/steps/0/distill/features",
        "The loss 'task' asks no teacher",
    ),
    "a layer that does not exist": (
        finetune(features=[{"layer": "conv1"}, {"layer": "layer1.0.conv3"}]),
        {},
        "/steps/0/distill/features/1/layer",
        "No layer with weights has a name that matches 'layer1.0.conv3'; the nearest are layer1.0.conv",
    ),
    "a layer that the teacher does not have": (
        finetune(None, **{"from": "net_2", "features": [{"layer": "fc"}]}),
        TEACHERS,
        "/steps/0/distill/features/0/layer",
        "No layer of both networks has a name that matches 'fc'",
    ),
    "a layer between rounds": (
        {**ROUNDS, "schedule": {"rounds": 2, "distill": {"features": [{"layer": "nothing"}]}}},
        {},
        "/steps/0/schedule/distill/features/0/layer",
        "No layer with weights has a name that matches 'nothing'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_distillation_that_cannot_be_is_refused_with_the_remedy(name: str) -> None:
    step, teachers, pointer, message = REFUSED[name]
    problems = check(spec([step], data={}), RESNET, ARRAYS, teachers)
    assert [problem.pointer for problem in problems] == [pointer]
    assert message in problems[0].message


def test_every_teacher_is_found_once_wherever_it_teaches() -> None:
    between = {**ROUNDS, "schedule": {"rounds": 2, "distill": {"from": "net_3"}}}
    steps = spec([between, finetune(**{"from": "net_2"}), finetune(), finetune(**{"from": "net_3"})], data={}).steps
    assert teacher_ids(steps or []) == {
        "net_3": "/steps/0/schedule/distill/from",
        "net_2": "/steps/1/distill/from",
    }


def test_what_a_teacher_is_counts_for_a_checkpoint_and_its_id_does_not() -> None:
    def keys(name: str, **identity: str) -> list[str]:
        between = {**ROUNDS, "schedule": {"rounds": 2, "distill": {"from": name}}}
        asked = spec([ROUNDS, between, finetune(**{"from": name})], data={})
        return checkpoint_keys("a" * 64, "b" * 64, Spec.model_validate_json(asked.model_dump_json()), identity)

    first, renamed, other = keys("net_2", net_2="c"), keys("net_3", net_3="c"), keys("net_2", net_2="d")
    assert first == renamed
    assert first[0] == other[0]
    assert first[1] != other[1]
    assert first[2] != other[2]
