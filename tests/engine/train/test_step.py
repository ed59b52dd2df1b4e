"""The finetune step on lifted networks: labels, the original's answers, or both; what it says and what it refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from models.errors import Code, Failure
from models.events import MetricEvent, PhaseEvent, ProgressEvent
from models.inspection import TensorInfo
from models.spec import Data, FinetuneStep, Spec
from tests.engine.subjects import lifted, samples, subject_of
from worker.engine.data.dataset import open_dataset
from worker.engine.interrupts import Interrupts, Stopped
from worker.engine.run import Run
from worker.engine.subject import StepState, Subject
from worker.engine.train.state import copy_weights, weights_of
from worker.engine.train.step import replay, run

STEP = FinetuneStep(step="finetune", epochs=3, learning_rate=3e-3, batch_size=32)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.bn(self.conv(x)).relu().mean((2, 3)))
        return y


class Frozen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def small(folder: Path) -> Subject:
    torch.manual_seed(0)
    return lifted(Small(), (torch.randn(2, 1, 8, 8),), folder)


def patterns(count: int = 160) -> dict[str, np.ndarray[Any, Any]]:
    """Four classes that differ in the direction of their stripes."""
    generator = np.random.default_rng(0)
    y = np.arange(count) % 4
    rows, columns = np.mgrid[0:8, 0:8]
    stripes = np.stack([np.sin(rows * 1.5), np.sin(columns * 1.5), np.sin((rows + columns) * 1.5), rows * 0.0])
    x = stripes[y][:, None] + 0.3 * generator.standard_normal((count, 1, 8, 8))
    return {"x": x.astype(np.float32), "y": y}


def started(subject: Subject, folder: Path, arrays: dict[str, Any] | None, step: FinetuneStep, **data: Any) -> Run:
    """A run whose events are kept in `run.events`."""
    events: list[Any] = []
    opened = None
    choice = Data.model_validate({"dataset": "dat_test"} | data)
    if arrays is not None:
        np.savez(folder / "data.npz", **arrays)
        opened = open_dataset(folder / "data.npz", choice, subject.inputs, seed=0)
    spec = Spec(model="net_test", data=choice if arrays is not None else None, steps=[step])
    begun = Run(spec, folder, events.append, torch.device("cpu"), opened, step_index=0)
    begun.events = events  # type: ignore[attr-defined]
    return begun


def events_of(begun: Run, kind: type) -> list[Any]:
    return [event for event in begun.events if isinstance(event, kind)]  # type: ignore[attr-defined]


def damage(subject: Subject) -> None:
    """What a pruning step does to a network's accuracy, without a pruning step."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in subject.graph.parameters():
            parameter.mul_(0.3).add_(0.1 * torch.randn_like(parameter))


def test_labels_teach(tmp_path: Path) -> None:
    subject = small(tmp_path)
    begun = started(subject, tmp_path, patterns(), STEP.model_copy(update={"epochs": 20, "learning_rate": 2e-2}))
    details = run(subject, begun.spec.steps[0], begun)  # type: ignore[index, arg-type]
    assert (details["metric"], details["loss"], details["train_samples"]) == ("accuracy", "both", 128)
    assert details["metric_before"] < 0.6
    assert details["metric_after"] > 0.9
    assert details["best_epoch"] > 0


def test_only_the_network_changes_and_not_the_original(tmp_path: Path) -> None:
    subject = small(tmp_path)
    original, network = copy_weights(subject.original), copy_weights(subject.graph)
    begun = started(subject, tmp_path, patterns(), STEP)
    run(subject, STEP, begun)
    assert all(torch.equal(original[name], value) for name, value in weights_of(subject.original).items())
    assert any(not torch.equal(network[name], value) for name, value in weights_of(subject.graph).items())
    assert not subject.graph.training
    assert not subject.original.training


def test_the_originals_answers_teach_without_labels(tmp_path: Path) -> None:
    subject = small(tmp_path)
    damage(subject)
    step = STEP.model_copy(update={"epochs": 10, "learning_rate": 2e-2})
    details = run(subject, step, started(subject, tmp_path, {"x": patterns()["x"]}, step))
    assert (details["metric"], details["loss"]) == ("agreement", "distill")
    assert details["metric_after"] > details["metric_before"] + 0.2
    losses = [row["val_loss"] for row in details["history"]]
    assert losses[details["best_epoch"]] < 0.5 * losses[0]


def test_an_undamaged_network_has_nothing_to_learn_from_the_original(tmp_path: Path) -> None:
    subject = small(tmp_path)
    start = copy_weights(subject.graph)
    begun = started(subject, tmp_path, {"x": patterns()["x"]}, STEP)
    details = run(subject, STEP, begun)
    assert details["best_epoch"] == 0
    assert details["metric_before"] == details["metric_after"] == 1.0
    assert all(torch.equal(start[name], value) for name, value in weights_of(subject.graph).items())
    assert [notice.code for notice in begun.warnings] == ["finetune_did_not_help"]


def test_training_ends_when_the_time_is_up_and_what_it_reached_is_judged(tmp_path: Path) -> None:
    subject = small(tmp_path)
    step = STEP.model_copy(update={"epochs": 1000})
    begun, kept = started(subject, tmp_path, patterns(), step), list[StepState]()
    begun.interrupts, begun.keep_state = Interrupts(deliver_seconds=0.2), kept.append
    details = run(subject, step, begun)
    assert details["cut_short"]
    assert 0 < details["epochs"] < 1000
    assert kept, "another job may go on from where this one ended"
    assert not run(small(tmp_path), STEP, started(subject, tmp_path, patterns(), STEP))["cut_short"]


def test_told_to_stop_it_keeps_its_state_first_and_goes_no_further(tmp_path: Path) -> None:
    subject = small(tmp_path)
    begun, kept = started(subject, tmp_path, patterns(), STEP), list[StepState]()

    def keep(state: StepState) -> None:
        kept.append(state)
        begun.interrupts.state_kept()

    def emit(event: Any) -> None:
        if isinstance(event, ProgressEvent) and event.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    begun.emit, begun.keep_state = emit, keep
    with pytest.raises(Stopped):
        run(subject, STEP, begun)
    assert [(state.data["epoch"], state.data["batches"]) for state in kept] == [(2, 1)]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    results = []
    for _ in range(2):
        subject = small(tmp_path)
        run(subject, STEP, started(subject, tmp_path, patterns(), STEP))
        results.append(copy_weights(subject.graph))
        torch.rand(5)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_it_says_phase_progress_and_metrics(tmp_path: Path) -> None:
    subject = small(tmp_path)
    begun = started(subject, tmp_path, patterns(), STEP)
    begun.share(20.0, 50.0)
    run(subject, STEP, begun)
    assert [event.phase for event in events_of(begun, PhaseEvent)] == ["finetuning"]
    percents = [event.percent for event in events_of(begun, ProgressEvent)]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (20.0, 70.0)
    last = events_of(begun, ProgressEvent)[-1]
    assert (last.epoch, last.epochs) == (3, 3)
    said = [(event.name, event.split, event.epoch, event.step_index) for event in events_of(begun, MetricEvent)]
    expected = [("loss", "val", 0, 0), ("accuracy", "val", 0, 0)]
    for epoch in (1, 2, 3):
        expected += [("loss", "train", epoch, 0), ("loss", "val", epoch, 0), ("accuracy", "val", epoch, 0)]
    assert said == expected


def test_it_records_what_it_did_and_replaying_changes_nothing(tmp_path: Path) -> None:
    subject = small(tmp_path)
    details = run(subject, STEP, started(subject, tmp_path, patterns(), STEP))
    record = subject.records[-1]
    assert (record.step, record.data) == ("finetune", details)
    before = copy_weights(subject.graph)
    replay(subject, record)
    assert all(torch.equal(before[name], value) for name, value in weights_of(subject.graph).items())


def test_an_error_metric_is_better_when_lower(tmp_path: Path) -> None:
    subject = small(tmp_path)
    arrays = patterns()
    arrays["y"] = arrays["x"].reshape(160, -1)[:, :4].astype(np.float32)
    step = STEP.model_copy(update={"epochs": 8, "loss": "task", "learning_rate": 1e-2})
    details = run(subject, step, started(subject, tmp_path, arrays, step, metric="rmse"))
    assert details["metric"] == "rmse"
    assert 0 < details["metric_after"] < details["metric_before"]


FAMILIES = ["resnet18", "densenet", "mobilenet_v3", "vit", "bert", "lstm", "tied_language_model", "two_towers", "unet"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_from_its_original(tmp_path: Path, name: str) -> None:
    subject = subject_of(name)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in subject.graph.parameters():
            parameter.mul_(1.0 + 0.3 * torch.randn_like(parameter))
    step = FinetuneStep(step="finetune", epochs=2, learning_rate=5e-4, batch_size=8)
    details = run(subject, step, started(subject, tmp_path, samples(subject.inputs, 60), step))
    losses = [row["val_loss"] for row in details["history"]]
    assert losses[0] > 1e-4
    assert min(losses[1:]) < losses[0]


def test_a_network_without_parameters_is_not_trainable(tmp_path: Path) -> None:
    inputs = (TensorInfo(name="x", dtype="float32", shape=[None, 1, 8, 8]),)
    outputs = (TensorInfo(name="mean", dtype="float32", shape=[None, 1]),)
    subject = Subject.of(fx.symbolic_trace(Frozen()), inputs, outputs)
    with pytest.raises(Failure) as caught:
        run(subject, STEP, started(subject, tmp_path, {"x": patterns()["x"]}, STEP))
    assert caught.value.code is Code.NOT_TRAINABLE


def test_weights_that_are_not_finite_fail(tmp_path: Path) -> None:
    subject = small(tmp_path)
    with torch.no_grad():
        next(subject.graph.parameters()).fill_(float("inf"))
    with pytest.raises(Failure) as caught:
        run(subject, STEP, started(subject, tmp_path, patterns(), STEP))
    assert caught.value.code is Code.NAN_LOSS


def test_without_data_it_refuses(tmp_path: Path) -> None:
    subject = small(tmp_path)
    with pytest.raises(Failure, match="needs data") as caught:
        run(subject, STEP, started(subject, tmp_path, None, STEP))
    assert caught.value.code is Code.INVALID_SPEC


def test_the_task_loss_without_labels_is_refused(tmp_path: Path) -> None:
    subject = small(tmp_path)
    step = STEP.model_copy(update={"loss": "task"})
    with pytest.raises(Failure, match="needs labels"):
        run(subject, step, started(subject, tmp_path, {"x": patterns()["x"]}, step))


def test_labels_the_network_does_not_know_are_refused(tmp_path: Path) -> None:
    subject = small(tmp_path)
    arrays = patterns()
    arrays["y"] = np.arange(160) % 6
    with pytest.raises(Failure, match="6 classes") as caught:
        run(subject, STEP, started(subject, tmp_path, arrays, STEP))
    assert caught.value.code is Code.DATASET_MISMATCH


def test_a_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    subject = subject_of("lstm")
    arrays = samples(subject.inputs, 30)
    arrays[subject.inputs[0].name][7, 0] = 10**6
    with pytest.raises(Failure, match="embedding"):
        run(subject, STEP, started(subject, tmp_path, arrays, STEP))


def test_a_loss_that_stops_being_a_number_leaves_the_last_good_state(tmp_path: Path) -> None:
    arrays = patterns()
    arrays["split"] = np.array(["train"] * 128 + ["val"] * 16 + ["test"] * 16)
    arrays["x"][100] *= 1e38  # of the training samples alone: the start can be judged
    step = STEP.model_copy(update={"batch_size": 4})
    subject, kept = small(tmp_path), list[StepState]()
    begun = started(subject, tmp_path, arrays, step)
    begun.keep_state = kept.append
    begun.interrupts.state_due = lambda: True  # type: ignore[method-assign]
    with pytest.raises(Failure, match="lower the learning rate") as caught:
        run(subject, step, begun)
    assert caught.value.code is Code.NAN_LOSS
    assert 0 < len(kept) < 32
    assert all(bool(value.isfinite().all()) for state in kept for value in state.tensors.values())
