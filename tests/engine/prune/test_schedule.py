"""Pruning in rounds with training in between: how much goes when, and that a stopped run goes on as if it had not."""

# mypy: disable-error-code="index, union-attr"
from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.events import MetricEvent, PhaseEvent
from models.schedules import gone_after
from models.spec import PruneStep, Schedule
from tests.engine.subjects import dataset_for, lifted, run_in
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.graph.cost import parameters
from worker.engine.interrupts import Interrupts
from worker.engine.prune.step import replay, run
from worker.engine.run import Run
from worker.engine.subject import StepState, Subject
from worker.engine.train.step import run as finetune

STEP = PruneStep.model_validate(
    {
        "step": "prune",
        "amount": {"parameters": 0.7},
        "round_to": 1,
        "schedule": {"rounds": 3, "epochs_between": 2, "batch_size": 16, "learning_rate": 1e-2, "loss": "distill"},
    }
)


@pytest.mark.parametrize(
    ("curve", "gone"),
    [
        ("linear", [0.2, 0.4, 0.6, 0.8]),
        ("cubic", [0.8 * (1 - 27 / 64), 0.8 * (1 - 8 / 64), 0.8 * (1 - 1 / 64), 0.8]),
        ("exponential", [1 - 0.2**0.25, 1 - 0.2**0.5, 1 - 0.2**0.75, 0.8]),
    ],
)
def test_curves_are_as_published(curve: Any, gone: list[float]) -> None:
    schedule = Schedule(rounds=4, curve=curve)
    assert [gone_after(schedule, number, 0.8) for number in (1, 2, 3, 4)] == pytest.approx(gone)
    assert gone_after(None, 1, 0.8) == 0.8


def test_an_exponential_curve_removes_the_same_fraction_of_what_is_left() -> None:
    left = [1.0, *(1 - gone_after(Schedule(rounds=5, curve="exponential"), number, 0.9) for number in range(1, 6))]
    assert [after / before for before, after in pairwise(left)] == pytest.approx([0.1**0.2] * 5)


def small(folder: Path) -> Subject:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)
    )
    return lifted(network, (torch.randn(2, 6),), folder)


def started(subject: Subject, folder: Path, step: PruneStep = STEP) -> Run:
    begun = run_in(folder, step, data=dataset_for(subject, folder, 80))
    begun.train, begun.step_index = finetune, 0
    return begun


def test_every_round_reaches_its_part_of_the_amount_and_trains_after_it(tmp_path: Path) -> None:
    subject = small(tmp_path)
    before = parameters(subject.graph)
    begun, events = started(subject, tmp_path), list[Any]()
    begun.emit = events.append
    details = run(subject, STEP, begun)
    rounds = details["rounds"]
    assert [row["asked"] for row in rounds] == pytest.approx([gone_after(STEP.schedule, n, 0.7) for n in (1, 2, 3)])
    assert [row["reached"] for row in rounds] == pytest.approx([row["asked"] for row in rounds], abs=0.02)
    assert details["reached"] == pytest.approx(1 - parameters(subject.graph) / before, abs=1e-6)
    assert [row["training"] and row["training"]["epochs"] for row in rounds] == [2, 2, None]
    assert all(row["metric"]["name"] == "agreement" for row in rounds)
    assert all(row["metric"]["after_training"] >= row["metric"]["after_cut"] for row in rounds[:2])
    assert [record.step for record in subject.records] == ["prune", "finetune", "prune", "finetune", "prune"]
    assert details["mask_check"] <= 1e-5
    assert details["cut_short"] is False
    row = next(row for row in details["groups"] if row["id"] == "0")
    assert (row["units_before"], row["units_after"]) == (24, subject.graph.get_submodule("0").out_features)
    phases = [event.phase for event in events if isinstance(event, PhaseEvent)]
    assert phases == ["pruning", "finetuning", "pruning", "finetuning", "pruning"]
    percents = [event.percent for event in events if event.type == "progress"]
    assert percents == sorted(percents)
    assert any(isinstance(event, MetricEvent) for event in events)


def test_replaying_the_records_of_all_rounds_gives_the_same_shapes(tmp_path: Path) -> None:
    subject = small(tmp_path)
    again = Subject.of(copy.deepcopy(subject.graph), subject.inputs, subject.outputs)
    run(subject, STEP, started(subject, tmp_path))
    for record in subject.records:
        if record.step == "prune":
            replay(again, record)
    shapes = {name: tensor.shape for name, tensor in subject.graph.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.graph.state_dict().items()} == shapes


@pytest.mark.parametrize("amount", [{"parameters": 0.7}, {"percentile": 60}, {"target": {"channels": 15}}])
def test_a_run_resumed_from_any_state_ends_bit_for_bit_as_one_that_never_stopped(
    amount: dict[str, Any], tmp_path: Path
) -> None:
    layers = [{"match": "3", "amount": {"channels": 0.5}, "criterion": "l1"}]
    step = PruneStep.model_validate({**STEP.model_dump(), "amount": amount, "layers": layers, "criterion": "random"})
    subject = small(tmp_path)
    begun = started(subject, tmp_path, step)
    begun.interrupts = Interrupts(checkpoint_seconds=0.0)
    states: list[Path] = []
    kinds: list[bool] = []

    def keep(state: StepState) -> None:
        states.append(tmp_path / f"{len(states)}.safetensors")
        kinds.append("log" in state.data)
        save_checkpoint(subject, [], states[-1], state)

    begun.keep_state = keep
    whole = run(subject, step, begun)
    between = [place for place, inside in enumerate(kinds) if not inside]
    inside = [place for place, inside in enumerate(kinds) if inside]
    assert len(between) == 5, "after each cut, and after each training"
    for place in (*between, inside[1], inside[-2]):
        again = small(tmp_path)
        resumed = started(again, tmp_path, step)
        _, resumed.state = restore_checkpoint(again, states[place])
        details = run(again, step, resumed)
        assert details == whole, place
        expected = subject.graph.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.graph.state_dict().items()), place
        assert again.graph.state_dict().keys() == expected.keys()


def test_once_the_time_is_up_no_other_round_begins(tmp_path: Path) -> None:
    subject = small(tmp_path)
    begun = started(subject, tmp_path)
    begun.interrupts = Interrupts(deliver_seconds=0.0)
    details = run(subject, STEP, begun)
    assert details["cut_short"] is True
    assert len(details["rounds"]) == 1
    assert details["rounds"][0]["units_removed"] > 0


def test_a_round_too_small_for_a_step_removes_nothing_and_trains_nothing(tmp_path: Path) -> None:
    step = PruneStep.model_validate(
        {
            **STEP.model_dump(),
            "amount": {"channels": 0.3},
            "round_to": 8,
            "schedule": {"rounds": 4, "curve": "linear", "loss": "distill"},
        }
    )
    subject = small(tmp_path)
    details = run(subject, step, started(subject, tmp_path, step))
    assert details["rounds"][0]["units_removed"] == 0
    assert details["rounds"][0]["training"] is None
    assert details["reached"] == pytest.approx(16 / 48)
