"""Faster steps: other precisions and layouts, batches read ahead, images changed on the device; what is measured."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import Code, Failure
from models.spec import FinetuneStep
from models.spec_speed import Augment, Speed
from tests.engine.subjects import lifted
from tests.engine.train.test_loop import PLAN, clusters, cross_entropy, fit, network, same_weights
from tests.engine.train.test_options import stored
from tests.engine.train.test_step import patterns, small, started
from worker.engine.data.dataset import Batch
from worker.engine.data.samples import Samples
from worker.engine.data.splits import Rows
from worker.engine.subject import StepState
from worker.engine.train.augment import augmented
from worker.engine.train.feed import read_ahead
from worker.engine.train.loop import Verdict, train
from worker.engine.train.measure_loaders import choose_loaders
from worker.engine.train.measure_numerics import choose_numerics
from worker.engine.train.numerics import Numerics
from worker.engine.train.state import copy_weights, weights_of
from worker.engine.train.step import run

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(("precision", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_steps_are_taken_in_half_precision_and_weights_stay_whole(
    tmp_path: Path, precision: Any, kind: torch.dtype
) -> None:
    data, module, whole = clusters(tmp_path), network(), network()
    seen: set[torch.dtype] = set()
    module.get_submodule("0").register_forward_hook(lambda *call: seen.add(call[2].dtype))
    plan = replace(PLAN, numerics=Numerics(precision), epochs=15, learning_rate=2e-2)
    log = fit(module, data, plan)
    assert seen == {kind, torch.float32}, "half while training, whole while judging"
    assert all(value.dtype == torch.float32 for value in module.parameters())
    assert log.epochs[log.best].verdict.score > 0.9
    fit(whole, data, replace(plan, numerics=Numerics()))
    assert not same_weights(module, whole)


def test_a_loss_that_is_not_finite_fails_in_half_precision_too_and_moves_nothing(tmp_path: Path) -> None:
    data, module = clusters(tmp_path), network()
    plan, before = replace(PLAN, numerics=Numerics("float16"), epochs=1), copy_weights(module)
    with pytest.raises(Failure) as caught:
        train(module, data.train, lambda batch: cross_entropy(module)(batch) * torch.inf, _verdict, plan)
    assert caught.value.code is Code.NAN_LOSS
    names = [name for name, _ in module.named_parameters()]
    assert all(torch.equal(before[name], weights_of(module)[name]) for name in names)


def _verdict() -> Verdict:
    return Verdict(0.0, 0.0)


def test_channels_last_are_the_same_numbers_and_only_for_the_time(tmp_path: Path) -> None:
    losses, weights = [], []
    for speed in (Speed(), Speed(channels_last=True)):
        subject = small(tmp_path)
        step = FinetuneStep(step="finetune", epochs=2, batch_size=32, speed=speed)
        details = run(subject, step, started(subject, tmp_path, patterns(), step))
        losses.append([row["val_loss"] for row in details["history"]])
        weights.append(copy_weights(subject.graph))
        assert all(value.is_contiguous() for value in weights[-1].values())
        assert details["speed"]["channels_last"] == speed.channels_last
        assert "gain" not in details["speed"], "nothing was measured"
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class Flattened(nn.Module):
    """Lays its channels out in a row, which needs them first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.ops.aten.view.default(self.conv(x), [x.shape[0], 144]))
        return y


def test_what_does_not_run_is_not_chosen_and_is_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = lifted(Flattened(), (torch.randn(2, 1, 8, 8),), tmp_path)
    step = FinetuneStep(step="finetune", epochs=1, batch_size=32, speed=Speed(channels_last="auto"))
    details = run(subject, step, started(subject, tmp_path, patterns(), step))
    usual, other = details["speed"]["measured"]
    assert (usual["failed"], other["samples_per_second"]) == (None, None)
    assert "view" in other["failed"]
    assert (details["speed"]["channels_last"], details["speed"]["gain"]) == (False, 1.0)
    step = step.model_copy(update={"speed": Speed(channels_last=True)})
    with pytest.raises(Failure, match="less in `speed`") as caught:
        run(subject, step, started(subject, tmp_path, patterns(), step))
    assert caught.value.code is Code.NOT_TRAINABLE


class TakesAll(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.empty(2**58, device=x.device).sum()


def test_a_trial_that_lacks_memory_says_that_and_not_that_the_network_cannot_be_trained(tmp_path: Path) -> None:
    data, module = clusters(tmp_path), nn.Sequential(nn.Linear(6, 4), TakesAll())
    asked = Speed(precision="bfloat16")
    with pytest.raises(Failure) as caught:
        choose_numerics(asked, module, data.train, cross_entropy(module), PLAN, {})
    assert caught.value.code is Code.OUT_OF_MEMORY


def test_a_measurement_leaves_everything_as_it_was(tmp_path: Path) -> None:
    data, module = clusters(tmp_path), network()
    before, random = copy_weights(module), torch.get_rng_state()
    chosen = choose_numerics(Speed(precision="auto"), module, data.train, cross_entropy(module), PLAN, {})
    assert all(torch.equal(before[name], value) for name, value in weights_of(module).items())
    assert torch.equal(random, torch.get_rng_state())
    details = chosen.as_details()
    assert [row["choice"] for row in details["measured"]] == ["float32", "bfloat16"]
    speeds = [row["samples_per_second"] for row in details["measured"]]
    assert min(speeds) > 0
    taken = ["float32", "bfloat16"].index(details["precision"])
    assert details["gain"] == pytest.approx(speeds[taken] / speeds[0], abs=1e-3)
    assert choose_numerics(Speed(), module, data.train, cross_entropy(module), PLAN, {}).tried == ()


def test_images_are_flipped_and_shifted_as_said() -> None:
    torch.manual_seed(0)
    batch = Batch((torch.randn(40, 3, 5, 6), torch.randn(40, 7)), torch.arange(40))
    asked = Augment(flip=True, shift=2)
    torch.manual_seed(1)
    result = augmented(batch, asked)
    torch.manual_seed(1)
    flips, moves = torch.rand(40) < 0.5, torch.randint(0, 5, (2, 40))
    assert 10 < int(flips.sum()) < 30
    assert {(int(row), int(column)) for row, column in moves.T} > {(0, 0), (1, 1)}
    for place, image in enumerate(batch.inputs[0]):
        image = image.flip(2) if flips[place] else image
        row, column = moves[:, place].tolist()
        assert torch.equal(result.inputs[0][place], F.pad(image, [2] * 4)[:, row : row + 5, column : column + 6])
    assert result.inputs[1] is batch.inputs[1]
    assert result.labels is batch.labels
    torch.manual_seed(2)
    flipped = augmented(batch, Augment(flip=True)).inputs[0]
    for new, old in zip(flipped, batch.inputs[0], strict=True):
        assert torch.equal(new, old) or torch.equal(new, old.flip(2))


@pytest.mark.parametrize("loaders", [1, 3])
def test_reading_ahead_gives_the_same_and_ends_with_the_reader(loaders: int) -> None:
    assert list(read_ahead((partial(int, number) for number in range(50)), loaders)) == list(range(50))

    def broken() -> int:
        raise Failure(Code.DATASET_BAD, "broken")

    calls: list[Callable[[], int]] = [int, broken, int]
    reader = read_ahead(iter(calls), loaders)
    assert next(reader) == 0
    with pytest.raises(Failure, match="broken"):
        next(reader)
    threads = threading.active_count()
    endless = read_ahead(itertools.repeat(int), loaders)
    assert [next(endless), next(endless)] == [0, 0]
    assert threads < threading.active_count() <= threads + loaders
    endless.close()
    assert threading.active_count() == threads


def test_loaders_read_at_the_same_time_and_leave_the_threads_of_others_alone() -> None:
    meeting, own = threading.Barrier(3), torch.get_num_threads()
    assert sorted(read_ahead(iter([partial(meeting.wait, 60)] * 6), 3)) == [0, 0, 1, 1, 2, 2]
    assert torch.get_num_threads() == own


def test_any_number_of_loaders_trains_the_same_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    data, states = clusters(tmp_path), list[StepState]()
    usual, other, resumed = network(), network(), network(seed=9)
    log = fit(usual, data)
    plan = replace(PLAN, loaders=3)
    assert fit(other, data, plan, on_state=states.append, state_due=lambda: True) == log
    assert fit(resumed, data, replace(PLAN, loaders=2), resume=stored(states[8], tmp_path)) == log
    assert same_weights(usual, other)
    assert same_weights(usual, resumed)


class Slow:
    """Samples that take their time, as those do that are far away."""

    def __init__(self, samples: Samples, seconds: float) -> None:
        self.samples, self.seconds = samples, seconds

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, rows: Rows) -> tuple[Tensor, ...]:
        time.sleep(self.seconds)
        return self.samples.read(rows)


def test_more_loaders_are_tried_where_steps_wait_for_batches_and_kept_where_they_gain(tmp_path: Path) -> None:
    data, module = clusters(tmp_path), network()
    slow, before = replace(data.train, samples=Slow(data.train.samples, 0.05)), copy_weights(module)
    chosen = choose_loaders("auto", module, slow, cross_entropy(module), PLAN, {}, most=2)
    assert all(torch.equal(before[name], value) for name, value in weights_of(module).items())
    details = chosen.as_details()
    rows = details["loaders_measured"]
    assert [row["loaders"] for row in rows] in ([1], [1, 2]), "one where a machine that stands still hides the reading"
    assert all(0 <= row["waited"] <= 1 < row["samples_per_second"] for row in rows)
    assert details["loaders_gain"] >= 1.05 if chosen.count == 2 else details["loaders_gain"] == 1.0
    alone = choose_loaders("auto", module, slow, cross_entropy(module), PLAN, {}, most=1).as_details()
    assert (alone["loaders"], len(alone["loaders_measured"])) == (1, 1)
    assert choose_loaders(4, module, slow, cross_entropy(module), PLAN, {}, most=1).as_details() == {"loaders": 4}


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
def test_on_a_gpu_every_precision_learns_and_goes_on(tmp_path: Path, precision: Any) -> None:
    data, module, states = clusters(tmp_path), network().cuda(), list[StepState]()
    plan = replace(PLAN, epochs=15, learning_rate=2e-2, numerics=Numerics(precision, cudnn_autotune=True))

    def judge_on_gpu(module: nn.Module) -> Verdict:
        batch = data.val.sample(1000, 0).to(torch.device("cuda"))
        module.eval()
        with torch.no_grad():
            outputs = module(*batch.inputs)
        assert batch.labels is not None
        return Verdict(
            (outputs.argmax(1) == batch.labels).float().mean().item(), F.cross_entropy(outputs, batch.labels).item()
        )

    whole = train(
        module,
        data.train,
        cross_entropy(module),
        lambda: judge_on_gpu(module),
        plan,
        on_state=states.append,
        state_due=lambda: True,
    )
    assert whole.epochs[whole.best].verdict.score > 0.9
    resumed = network(seed=9).cuda()
    state = stored(StepState(states[20].data, {k: v.cpu() for k, v in states[20].tensors.items()}), tmp_path)
    log = train(resumed, data.train, cross_entropy(resumed), lambda: judge_on_gpu(resumed), plan, resume=state)
    assert len(log.epochs) == len(whole.epochs)
    assert log.epochs[log.best].verdict.score > 0.9


@cuda
@pytest.mark.cuda
def test_on_a_gpu_the_fastest_is_found(tmp_path: Path) -> None:
    subject = small(tmp_path)
    step = FinetuneStep.model_validate({"step": "finetune", "epochs": 1, "batch_size": 32, "speed": "auto"})
    begun = started(subject, tmp_path, patterns(), step)
    begun.device = torch.device("cuda")
    details = run(subject, step, begun)
    assert len(details["speed"]["measured"]) == 12
    assert details["speed"]["gain"] >= 1.0
