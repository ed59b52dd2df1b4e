"""Training in several processes: what one process computes, up to rounding; and how it ends when one of them does."""

from __future__ import annotations

import contextlib
import queue
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from models.errors import Code, Failure
from models.events import ProgressEvent
from models.messages import CompressRequest, InputFile, NetworkFile
from models.spec import FinetuneStep, SparsifyStep, Step
from tests.engine.subjects import lifted
from tests.engine.train.test_options import stored
from tests.engine.train.test_step import patterns, started
from tests.worker.fleet import until
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.crew import Crew
from worker.engine.interrupts import Interrupts
from worker.engine.pipeline import STEPS
from worker.engine.run import Run
from worker.engine.subject import StepState, Subject
from worker.engine.train.state import Weights, copy_weights, load_weights
from worker.engine.train.step import run

STEP = TypeAdapter[Any](Step)
SAMPLES = 171
"""Of which 137 are to train on: four batches of 32 and one of 9."""


class Normal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.bn(self.conv(x)).relu().mean((2, 3)))
        return y


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return y


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32)
        self.between, self.head = nn.Linear(32, 48), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.between(self.bn(self.conv(x)).relu().mean((2, 3))).relu())
        return y


class Place:
    """A network and data in files, and what a training by `step` makes of them in so many processes."""

    def __init__(
        self,
        folder: Path,
        module: type[nn.Module],
        step: dict[str, Any],
        arrays: dict[str, Any],
        device: Literal["cpu", "cuda"] = "cpu",
        **data: Any,
    ) -> None:
        self._folder, self._module, self._step, self._arrays = folder, module, step, arrays
        self._device, self._data = device, data
        self.subject: Subject
        self.request: CompressRequest

    def run(self, processes: int | str) -> Run:
        speed = {**self._step.get("speed", {}), "processes": processes}
        step = STEP.validate_python({"step": "finetune", "batch_size": 32, **self._step, "speed": speed})
        torch.manual_seed(0)
        self.subject = lifted(self._module(), (torch.randn(2, 1, 8, 8),), self._folder)
        begun = started(self.subject, self._folder, self._arrays, step, **self._data)
        begun.device = torch.device(self._device)
        self.request = CompressRequest(
            network=NetworkFile(path=self._folder / "network.pt2"),
            dataset=InputFile(path=self._folder / "data.npz"),
            spec=begun.spec,
            folder=self._folder,
            device=self._device,
            threads=2,
        )
        begun.gather, begun.train = Crew(self.request).gather, run
        return begun

    def train(self, begun: Run) -> tuple[dict[str, Any], Weights]:
        assert begun.spec.steps is not None
        (step,) = begun.spec.steps
        details = STEPS[type(step)](self.subject, step, begun)
        return details, copy_weights(self.subject.graph)


def assert_alike(one: dict[str, Any], two: dict[str, Any], tolerance: float) -> None:
    for first, second in zip(one["history"], two["history"], strict=True):
        assert first["val_loss"] == pytest.approx(second["val_loss"], rel=tolerance)
        assert first["epoch"] == 0 or first["train_loss"] == pytest.approx(second["train_loss"], rel=tolerance)


@pytest.mark.slow
def test_two_processes_train_what_one_does_through_batch_norm_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    step = {
        "epochs": 3,
        "optimizer": "sgd",
        "clip_norm": 0.5,
        "average": 0.9,
        "loss": "both",
        "augment": {"flip": True, "shift": 1},
        "distill": {"features": [{"layer": "conv"}]},
    }
    place, states = Place(tmp_path, Normal, step, patterns(SAMPLES)), list[StepState]()
    alone, weights = place.train(place.run(1))
    begun = place.run(2)
    begun.keep_state = states.append
    begun.interrupts = Interrupts(checkpoint_seconds=0.0)
    together, others = place.train(begun)
    assert (alone["processes"], together["processes"], together["train_samples"]) == (1, 2, 137)
    assert alone["best_epoch"] > 0
    assert_alike(alone, together, 1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-5, msg=name)

    state = states[7]
    assert (state.data["epoch"], state.data["batches"]) == (2, 3)
    again = place.run(2)
    again.state = stored(state, tmp_path)
    load_weights(place.subject.graph, {name.removeprefix("network."): value for name, value in state.tensors.items()})
    resumed, bits = place.train(again)
    assert resumed["history"] == together["history"]
    assert all(torch.equal(value, bits[name]) for name, value in others.items())


QUANTIZED: dict[str, dict[str, Any]] = {
    "8 bits": {"method": "qat", "calibration_samples": 64, "learn_scales": True},
    "4 bits by 8": {"scheme": "int4", "group_size": 16, "activations": "int8"},
    "codebook": {"scheme": "codebook", "bits": 3},
}


@pytest.mark.parametrize("how", QUANTIZED)
def test_two_processes_train_a_quantized_network_as_one_does_and_go_on_to_the_same_bits(
    how: str, tmp_path: Path
) -> None:
    step = {"step": "quantize", "epochs": 2, "optimizer": "sgd", "learning_rate": 0.1, **QUANTIZED[how]}
    place = Place(tmp_path, Wide, step, patterns(SAMPLES))

    def begin(processes: int) -> Run:
        begun, sparsify = place.run(processes), SparsifyStep(step="sparsify", amount=0.3)
        STEPS[SparsifyStep](place.subject, sparsify, begun)
        return begun

    alone, _ = place.train(begin(1))
    begun, kept = begin(2), list[Path]()

    def keep(state: StepState) -> None:
        kept.append(tmp_path / f"{len(kept)}.safetensors")
        save_checkpoint(place.subject, [], kept[-1], state)

    begun.keep_state, begun.interrupts = keep, Interrupts(checkpoint_seconds=0.0)
    together, others = place.train(begun)
    assert (alone["training"]["processes"], together["training"]["processes"]) == (1, 2)
    assert alone["training"]["best_epoch"] > 0
    assert_alike(alone["training"], together["training"], 1e-4)
    assert alone["training"]["history"][-1]["val_loss"] < 0.99 * alone["training"]["history"][0]["val_loss"]

    again = place.run(2)
    _, again.state = restore_checkpoint(place.subject, kept[len(kept) // 2])
    resumed, bits = place.train(again)
    assert resumed == together
    assert all(torch.equal(value, bits[name]) for name, value in others.items())


def test_a_last_batch_with_fewer_samples_than_processes_is_trained_on_all_the_same(tmp_path: Path) -> None:
    step = {"epochs": 2, "optimizer": "sgd", "loss": "task", "keep": "last", "learning_rate": "auto"}
    place = Place(tmp_path, Normal, step, patterns(161))
    alone, weights = place.train(place.run(1))
    together, others = place.train(place.run(2))
    assert together["train_samples"] % 32 == 1
    assert alone["range_test"]["found"]
    assert_alike(alone, together, 1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-5, msg=name)


def test_pairs_that_lie_across_processes_teach_an_embedding_in_half_precision(tmp_path: Path) -> None:
    step = {"epochs": 2, "loss": "task", "speed": {"precision": "bfloat16"}}
    place = Place(tmp_path, Plain, step, patterns(SAMPLES), task="embedding")
    alone, _ = place.train(place.run(1))
    together, _ = place.train(place.run(2))
    assert_alike(alone, together, 0.02)


def test_gradients_that_travel_in_bfloat16_are_those_of_one_process_rounded(tmp_path: Path) -> None:
    rate = 0.125
    step = {"epochs": 1, "optimizer": {"name": "sgd", "momentum": 0.0}, "loss": "task"}
    step |= {"batch_size": 137, "learning_rate": rate, "rate_schedule": "constant", "clip_norm": None}
    step |= {"keep": "last", "weight_decay": 0.0}
    place = Place(tmp_path, Plain, step, patterns(SAMPLES))
    exact, weights = place.train(place.run(2))
    place = Place(tmp_path, Plain, step | {"speed": {"gradients": "bfloat16"}}, patterns(SAMPLES))
    begun = place.run(2)
    before = copy_weights(place.subject.graph)
    rounded, others = place.train(begun)
    assert (exact["gradients_sent_as"], rounded["gradients_sent_as"]) == ("float32", "bfloat16")
    for name, start in before.items():
        gradient, sent = ((start - after[name]) / rate for after in (weights, others))
        room = 4 * torch.finfo(torch.float32).eps * start.abs() / rate  # of the difference of two weights
        assert ((sent - sent.bfloat16().float()).abs() <= room).all(), name
        torch.testing.assert_close(sent, gradient, rtol=0.01, atol=0.005 * gradient.abs().max().item(), msg=name)
    gradient = (before["head.weight"] - weights["head.weight"]) / rate
    assert ((gradient - gradient.bfloat16().float()).abs() > 1e-4 * gradient.abs()).any(), "in float32 they are not"


def test_gradients_are_sent_to_nobody_by_one_process() -> None:
    with pytest.raises(ValidationError, match="ask for those too, or leave it out"):
        FinetuneStep.model_validate({"step": "finetune", "speed": {"gradients": "bfloat16"}})


def test_what_a_process_failed_with_is_what_the_training_fails_with(tmp_path: Path) -> None:
    begun = (place := Place(tmp_path, Plain, {"loss": "task"}, patterns())).run(3)
    arrays = patterns()
    np.savez(tmp_path / "data.npz", x=arrays["x"], y=arrays["y"] + 6)  # the first process has read better ones
    with pytest.raises(Failure, match="labels have 10 classes") as caught:
        place.train(begun)
    assert caught.value.code is Code.DATASET_MISMATCH
    assert members() == []


def test_where_the_first_process_hears_nothing_of_the_end_of_another_it_gives_up(tmp_path: Path) -> None:
    begun, heard = (place := Place(tmp_path, Plain, {}, patterns())).run(2), queue.SimpleQueue[Failure]()
    assert begun.spec.steps is not None
    (step,) = begun.spec.steps
    assert isinstance(step, FinetuneStep)
    with Crew(place.request, heard.put, 0.1).gather(place.subject, step, begun):
        for member in members():
            member.kill()
        assert "process 1 of those that train together ended by signal 9" in heard.get(timeout=30).message


def members() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            found += [child] if "worker.engine.member" in child.cmdline() else []
    return found


@pytest.mark.parametrize("when", ["it has begun", "all train"])
def test_where_a_process_dies_the_training_ends_and_says_so(tmp_path: Path, when: str) -> None:
    begun = (place := Place(tmp_path, Plain, {"epochs": 1000}, patterns())).run(2)

    def kill() -> list[psutil.Process]:
        for member in (found := members()):
            member.kill()
        return found

    if when == "all train":

        def emit(event: object) -> None:
            if isinstance(event, ProgressEvent):
                kill()

        begun.emit = emit
    else:
        threading.Thread(target=until, args=(kill, "a process beside this one")).start()
    with pytest.raises(Failure, match="process 1 of those that train together ended by signal 9") as caught:
        place.train(begun)
    assert (caught.value.code, caught.value.retryable) == (Code.ENGINE_CRASHED, True)
    assert members() == []
    assert not list(tmp_path.glob("team-*"))


def test_no_more_processes_divide_a_batch_than_it_has_samples() -> None:
    with pytest.raises(ValidationError, match="no more of them than `batch_size`"):
        FinetuneStep.model_validate({"step": "finetune", "batch_size": 2, "speed": {"processes": 3}})


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_train_what_one_does(tmp_path: Path) -> None:
    step = {"epochs": 2, "optimizer": "sgd"}
    place = Place(tmp_path, Normal, step, patterns(SAMPLES), device="cuda")
    alone, _ = place.train(place.run(1))
    together, _ = place.train(place.run("auto"))
    assert together["processes"] == torch.cuda.device_count()
    assert_alike(alone, together, 1e-3)
