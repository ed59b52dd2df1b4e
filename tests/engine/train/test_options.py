"""What can be chosen about training: optimizers, schedules, averages, when to stop, a rate found by trying; and that
every combination goes on where it stopped to the same bits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.errors import Code, Failure
from models.spec import FinetuneStep
from models.spec_optimizer import AdamW, Sgd
from tests.engine.train.test_loop import (
    PLAN,
    clusters,
    cross_entropy,
    fit,
    judge_of,
    network,
    same_weights,
)
from tests.engine.train.test_step import patterns, small, started
from worker.engine.run import Run
from worker.engine.subject import StepState
from worker.engine.train.average import Average
from worker.engine.train.loop import Epoch, Log, Plan, Verdict, train
from worker.engine.train.range_test import BELOW_THE_LOWEST, range_test
from worker.engine.train.rates import learning_rate_at
from worker.engine.train.state import copy_weights, weights_of
from worker.engine.train.step import run
from worker.engine.train.stepper import optimizer_for


def stored(state: StepState, folder: Path) -> StepState:
    """As a checkpoint keeps it: JSON and safetensors."""
    save_file({name: value.contiguous() for name, value in state.tensors.items()}, folder / "state.safetensors")
    return StepState(json.loads(json.dumps(state.data)), load_file(folder / "state.safetensors"))


PLANS: list[dict[str, Any]] = [
    {"optimizer": Sgd(), "rate_schedule": "cosine", "warm_up": 0.0, "average": 0.9},
    {"optimizer": Sgd(momentum=0.0, nesterov=False), "rate_schedule": "step", "clip_norm": None},
    {"optimizer": AdamW(beta1=0.5), "rate_schedule": "linear", "warm_up": 0.3, "patience": 1, "average": 0.99},
    {"optimizer": Sgd(nesterov=False), "rate_schedule": "constant", "keep": "last", "freeze_batch_norm": True},
]


@pytest.mark.parametrize(
    "changes", PLANS, ids=lambda changes: f"{changes['optimizer'].name}-{changes['rate_schedule']}"
)
def test_every_choice_goes_on_to_the_same_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    data, plan = clusters(tmp_path), replace(PLAN, **changes)
    whole, states = network(), list[StepState]()
    log = fit(whole, data, plan, on_state=states.append, state_due=lambda: True)
    assert not same_weights(whole, network())
    for stop in (0, 5, 8, len(states) - 1):
        resumed = network(seed=9)
        assert fit(resumed, data, plan, resume=stored(states[stop], tmp_path)) == log
        assert same_weights(whole, resumed)


@pytest.mark.parametrize(
    "asked",
    [
        {"regularize": {"penalty": "growing", "strength": 50}, "learning_rate": "auto", "average": 0.9},
        {"regularize": {"penalty": "group_lasso"}, "optimizer": "sgd", "learning_rate": "auto", "keep": "best"},
        {"regularize": {"penalty": "l1"}, "batch_norm": "freeze", "rate_schedule": "linear"},
        {"speed": {"precision": "bfloat16", "channels_last": True}, "augment": {"flip": True, "shift": 2}},
        {"speed": {"precision": "float16"}, "optimizer": "sgd", "average": 0.9, "augment": {"shift": 1}},
        {"speed": {"channels_last": True}, "learning_rate": "auto"},
        {"speed": "auto"},
    ],
    ids=["growing", "group_lasso", "l1", "bfloat16", "float16", "channels_last", "auto"],
)
def test_a_step_goes_on_to_the_same_bits_and_report_without_finding_out_again(
    tmp_path: Path, asked: dict[str, Any]
) -> None:
    step = FinetuneStep.model_validate({"step": "finetune", "epochs": 2, "batch_size": 32} | asked)
    whole, states = small(tmp_path), list[StepState]()
    begun = kept(started(whole, tmp_path, patterns(), step), states)
    details = run(whole, step, begun)
    assert len(states) == 8
    for stop in (0, 5):
        subject = small(tmp_path)
        with torch.no_grad():  # A checkpoint has put the network of the state back.
            for name, value in weights_of(subject.graph).items():
                value.copy_(states[stop].tensors[f"network.{name}"])
        again = started(subject, tmp_path, patterns(), step)
        again.state = stored(states[stop], tmp_path)
        rest = list[StepState]()
        assert run(subject, step, kept(again, rest)) == details
        assert len(rest) == 8 - (stop + 1)
        assert same_weights(subject.graph, whole.graph)


def kept(begun: Run, states: list[StepState]) -> Run:
    """Keeps a state after every batch."""
    begun.keep_state = states.append
    begun.interrupts.state_due = lambda: True  # type: ignore[method-assign]
    return begun


def test_the_rates_of_each_schedule() -> None:
    def rates(*arguments: Any) -> list[float]:
        return [learning_rate_at(step, 8, 2.0, *arguments) for step in range(8)]

    assert rates("constant", 0.0) == [2.0] * 8
    assert rates("constant", 0.5) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert rates("linear", 0.0) == [2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]
    assert rates("step", 0.0) == pytest.approx([2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02])
    assert rates("cosine", 0.0) == pytest.approx([1 + math.cos(math.pi * step / 8) for step in range(8)])
    assert rates("one_cycle", 0.1) == rates("cosine", 0.1)


def test_an_optimizer_is_what_pytorch_calls_it() -> None:
    module = network()
    sgd = optimizer_for(module, Sgd(momentum=0.8, nesterov=False), 0.3)
    assert isinstance(sgd, torch.optim.SGD)
    assert [(group["momentum"], group["nesterov"], group["weight_decay"]) for group in sgd.param_groups] == [
        (0.8, False, 0.3),
        (0.8, False, 0.0),
    ]
    adamw = optimizer_for(module, AdamW(beta2=0.95), 0.1)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.9, 0.95)
    assert all(parameter.ndim == 1 for parameter in adamw.param_groups[1]["params"])


def test_the_average_is_the_sum_it_says() -> None:
    module = nn.Linear(1, 1, bias=False)
    values, decays = [1.0, 2.0, 4.0], [0.1, 2 / 11, 0.25]
    with torch.no_grad():
        module.weight.fill_(10.0)
        average, expected = Average(module, 0.25), 10.0
        for step, (value, decay) in enumerate(zip(values, decays, strict=True)):
            module.weight.fill_(value)
            average.add(step)
            expected = decay * expected + (1 - decay) * value
    assert float(average.values["weight"]) == pytest.approx(expected, rel=1e-6)
    with average.in_place():
        assert float(module.weight.detach()) == pytest.approx(expected, rel=1e-6)
    assert float(module.weight.detach()) == 4.0


def test_the_better_of_average_and_weights_is_kept(tmp_path: Path) -> None:
    data, module = clusters(tmp_path), network()
    plan = replace(PLAN, learning_rate=0.3, rate_schedule="constant", average=0.9, epochs=6)
    log = fit(module, data, plan)
    assert log.epochs[log.best].averaged
    assert judge_of(module, data)() == log.epochs[log.best].verdict


def test_it_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    data, module, verdicts = clusters(tmp_path), network(), iter([3.0, 4.0, 1.0, 5.0, 2.0, 2.0, 9.0])
    log = train(
        module,
        data.train,
        cross_entropy(module),
        lambda: Verdict(next(verdicts), 0),
        replace(PLAN, epochs=9, patience=2),
    )
    assert [epoch.verdict.score for epoch in log.epochs] == [3.0, 4.0, 1.0, 5.0, 2.0, 2.0]
    assert (log.best, log.cut_short) == (3, False)


def test_the_last_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    log = Log(keep="last")
    assert log.add(Epoch(0, None, Verdict(0.9, 1.0)))
    assert log.add(Epoch(1, 1.0, Verdict(0.1, 9.0)))
    assert log.best == 1
    data, module = clusters(tmp_path), network()
    log = fit(module, data, replace(PLAN, learning_rate=5.0, keep="last"))
    assert (log.best, judge_of(module, data)()) == (4, log.epochs[4].verdict)


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scale(tmp_path: Path) -> None:
    data, module = clusters(tmp_path), network()
    before = copy_weights(module)
    fit(module, data, replace(PLAN, freeze_batch_norm=True, keep="last"))
    after = weights_of(module)
    assert all(torch.equal(before[name], after[name]) for name in ("1.running_mean", "1.running_var"))
    assert not torch.equal(before["1.weight"], after["1.weight"])


def test_without_clipping_a_gradient_has_its_own_length(tmp_path: Path) -> None:
    data, moved = clusters(tmp_path), []
    for clip_norm in (1e-3, None):
        module = network()
        start = copy_weights(module)
        plan = Plan(1, 0.1, 0.0, 4096, 0, Sgd(momentum=0, nesterov=False), "constant", 0.0, clip_norm, keep="last")
        fit(module, data, plan)
        names = [name for name, _ in module.named_parameters()]
        moved.append(math.sqrt(sum(float((weights_of(module)[n] - start[n]).square().sum()) for n in names)))
    assert moved[0] == pytest.approx(1e-4, rel=1e-2)
    assert moved[1] > 1e-2


def test_a_rate_is_found_by_trying_and_nothing_else_changes(tmp_path: Path) -> None:
    data, module, found = clusters(tmp_path), network(), []
    start = copy_weights(module)
    plan = replace(PLAN, learning_rate=0.0)
    for _ in range(2):
        torch.rand(3)
        found.append(range_test(module, data.train, cross_entropy(module), plan, {}))
        assert all(torch.equal(start[name], value) for name, value in weights_of(module).items())
    test = found[0]
    assert found[0] == found[1]
    assert test.found
    rates, losses = zip(*test.tried, strict=True)
    assert list(rates) == sorted(rates)
    assert test.chosen == pytest.approx(rates[losses.index(min(losses))] / BELOW_THE_LOWEST, rel=1e-2)
    log = fit(module, data, replace(PLAN, learning_rate=test.chosen, epochs=15))
    assert log.epochs[log.best].verdict.score > 0.9


def test_where_nothing_can_be_learnt_the_usual_rate_is_taken(tmp_path: Path) -> None:
    data, module = clusters(tmp_path), network()
    test = range_test(module, data.train, lambda batch: module(*batch.inputs).sum() * 0.0 + 1.0, PLAN, {})
    assert (test.chosen, test.found) == (5e-4, False)
    with pytest.raises(Failure, match="before any training") as caught:
        range_test(module, data.train, lambda batch: module(*batch.inputs).sum() * math.inf, PLAN, {})
    assert caught.value.code is Code.NAN_LOSS


def test_the_report_says_the_rate_that_was_found(tmp_path: Path) -> None:
    subject = small(tmp_path)
    step = FinetuneStep(step="finetune", epochs=1, learning_rate="auto", loss="task")
    details = run(subject, step, started(subject, tmp_path, patterns(), step))
    assert details["range_test"]["found"]
    assert details["learning_rate"] < min(row["rate"] for row in details["range_test"]["tried"][-1:])
    step = FinetuneStep(step="finetune", epochs=1, optimizer=Sgd())
    assert step.learning_rate == 0.01
    assert "range_test" not in run(subject, step, started(subject, tmp_path, patterns(), step))
