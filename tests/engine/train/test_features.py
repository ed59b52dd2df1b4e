"""Distillation of what layers give, and from another network than the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec import Distill, Feature, FinetuneStep, PruneStep
from tests.engine.subjects import lifted
from tests.engine.train.test_step import Small, damage, patterns, started
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.prune.step import run as prune
from worker.engine.subject import BESIDE, StepState, Subject
from worker.engine.train.features import Features, features_for
from worker.engine.train.state import copy_weights, weights_of
from worker.engine.train.step import run


class Writing(nn.Module):
    """What follows the first layers writes into what they gave."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.act(self.bn(self.conv(x))).mean((2, 3)))
        return y


def small(folder: Path, seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    return lifted(Small(), (torch.randn(2, 1, 8, 8),), folder)


def cut(folder: Path) -> Subject:
    """Half of the channels of `conv` and `bn` are gone from the network, not from the original."""
    subject = small(folder)
    step = PruneStep.model_validate({"step": "prune", "amount": {"channels": 0.5}, "round_to": 1})
    prune(subject, step, started(subject, folder, None, step))  # type: ignore[arg-type]
    return subject


def images(count: int = 6) -> tuple[Tensor]:
    return (torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3)),)


def features(subject: Subject, *choices: Feature) -> Features:
    return features_for(subject.graph, subject.original, choices, images(64), 0, "/here")[0]


def step_with(**distill: Any) -> FinetuneStep:
    return FinetuneStep(
        step="finetune", epochs=2, learning_rate=3e-3, batch_size=32, distill=Distill.model_validate(distill)
    )


FEATURES = [{"layer": "b*", "weight": 2.0}, {"layer": "conv"}]


def test_the_loss_is_the_error_over_the_teachers_variance(tmp_path: Path) -> None:
    subject = small(tmp_path)
    damage(subject)
    learnt = features(subject, Feature(layer="b*", weight=2.0), Feature(layer="conv"), Feature(layer="*", weight=0.5))
    assert dict(learnt.weights) == {"conv": 1.0, "bn": 2.0, "head": 0.5}
    with learnt.attached():
        for graph in (subject.original, subject.graph):
            graph(*images())
        got = learnt.loss()

    def given(graph: nn.Module, x: Tensor) -> dict[str, Tensor]:
        conv = graph.get_submodule("conv")(x)
        bn = graph.get_submodule("bn")(conv)
        return {"conv": conv, "bn": bn, "head": graph.get_submodule("head")(bn.relu().mean((2, 3)))}

    scale = {name: value.var(correction=0) for name, value in given(subject.original, *images(64)).items()}
    own, wanted = given(subject.graph, *images()), given(subject.original, *images())
    expected = sum(w * (own[n] - wanted[n]).square().mean() / scale[n] for n, w in learnt.weights.items())
    assert got.item() == pytest.approx(float(expected), rel=1e-5)


def test_a_layer_is_taken_at_its_word_though_what_follows_writes_into_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = lifted(Writing(), images(2), tmp_path)
    learnt = features(subject, Feature(layer="bn"))
    with learnt.attached():
        subject.original(*images())
        subject.graph(*images())
        assert learnt._own["bn"][0].min() < 0


def test_a_cut_layer_learns_through_a_projection_that_gradients_reach(tmp_path: Path) -> None:
    subject = cut(tmp_path)
    learnt = features(subject, Feature(layer="bn"), Feature(layer="head"))
    (projection,), (none,) = learnt.projections["bn"], learnt.projections["head"]
    assert projection is not None
    assert none is None
    assert (tuple(projection.weight.shape), projection.dim) == ((8, 4), 1)
    value = images(2)[0].expand(2, 4, 8, 8)
    conv = torch.nn.functional.conv2d(value, projection.weight[:, :, None, None], projection.bias)
    assert torch.allclose(projection(value), conv, atol=1e-6)
    names = set(weights_of(subject.graph))
    with learnt.attached():
        assert {name for name in weights_of(subject.graph) if name.startswith(BESIDE)}
        subject.original(*images())
        subject.graph(*images())
        torch.autograd.backward(learnt.loss())
    assert projection.weight.grad is not None
    assert projection.weight.grad.abs().sum() > 0
    assert subject.graph.get_parameter("conv.weight").grad is not None
    assert set(weights_of(subject.graph)) == names


def test_what_is_learnt_beside_the_network_is_not_delivered(tmp_path: Path) -> None:
    subject = cut(tmp_path)
    names = set(weights_of(subject.graph))
    step = step_with(features=FEATURES)
    details = run(subject, step, started(subject, tmp_path, {"x": patterns()["x"]}, step))
    assert details["features"] == [{"layer": "conv", "projected": True}, {"layer": "bn", "projected": True}]
    assert details["teacher"] == "original"
    assert set(weights_of(subject.graph)) == names
    assert not any(module._forward_hooks for module in [*subject.graph.modules(), *subject.original.modules()])


def test_features_bring_layers_closer_than_outputs_alone_do(tmp_path: Path) -> None:
    distances = []
    for chosen in ([], [{"layer": "bn", "weight": 10.0}]):
        subject = small(tmp_path)
        damage(subject)
        step = step_with(features=chosen).model_copy(update={"epochs": 12, "learning_rate": 2e-2})
        run(subject, step, started(subject, tmp_path, {"x": patterns()["x"]}, step))
        learnt = features(subject, Feature(layer="bn"))
        with learnt.attached(), torch.no_grad():
            subject.original(*images())
            subject.graph(*images())
            distances.append(learnt.loss().item())
    assert distances[1] < 0.5 * distances[0]


@pytest.mark.parametrize("pruned", [False, True])
def test_resumed_it_ends_as_if_nothing_had_come_between(tmp_path: Path, pruned: bool) -> None:
    teacher = small(tmp_path, seed=5).original
    step = step_with(**{"from": "net_teacher", "features": FEATURES})

    def fresh() -> Subject:
        return cut(tmp_path) if pruned else small(tmp_path)

    def tuned(subject: Subject, resume: StepState | None, keep: Any) -> None:
        begun = started(subject, tmp_path, patterns(), step)
        begun.teachers, begun.state, begun.keep_state = {"net_teacher": teacher}, resume, keep
        begun.interrupts.state_due = lambda: True  # type: ignore[method-assign]
        run(subject, step, begun)

    whole, path, kept = fresh(), tmp_path / "state.safetensors", list[StepState]()

    def keep(state: StepState) -> None:
        kept.append(state)
        if len(kept) == 3:
            save_checkpoint(whole, [], path, state)

    tuned(whole, None, keep)
    again = small(tmp_path)
    _, state = restore_checkpoint(again, path)
    assert state is not None
    tuned(again, state, lambda state: None)
    expected, got = copy_weights(whole.graph), copy_weights(again.graph)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_another_teacher_is_whom_the_network_comes_to_agree_with(tmp_path: Path) -> None:
    subject, teacher = small(tmp_path), small(tmp_path, seed=5)
    step = step_with(**{"from": "net_teacher"}).model_copy(update={"epochs": 20, "learning_rate": 2e-2})
    begun = started(subject, tmp_path, {"x": patterns()["x"]}, step)
    begun.teachers = {"net_teacher": teacher.original}
    details = run(subject, step, begun)
    assert (details["teacher"], details["metric"]) == ("net_teacher", "agreement")
    assert details["metric_after"] > details["metric_before"] + 0.2
    assert teacher.original.training is False


def test_shapes_that_no_linear_map_brings_together_are_refused(tmp_path: Path) -> None:
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 6, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x).mean((2, 3))[:, :4]
            return y

    subject, other = small(tmp_path), lifted(Wider(), images(2), tmp_path)
    with pytest.raises(Failure) as caught:
        features_for(subject.graph, other.original, [Feature(layer="conv")], images(), 0, "/steps/0/distill/features")
    assert caught.value.code is Code.INVALID_SPEC
    assert "gives ['N', 8, 6, 6] and the teacher's ['N', 6, 4, 4]: only one dimension may differ" in str(
        caught.value.message
    )
