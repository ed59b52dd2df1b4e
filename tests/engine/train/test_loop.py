"""The loop trains, keeps the best, never gives back something worse, repeats itself and goes on where it stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.spec import Data
from worker.engine.data.dataset import Batch, Dataset, open_dataset
from worker.engine.subject import StepState
from worker.engine.train.loop import Epoch, Log, Plan, Verdict, train
from worker.engine.train.rates import learning_rate_at
from worker.engine.train.state import copy_weights, weights_of

PLAN = Plan(epochs=4, learning_rate=1e-2, weight_decay=1e-2, batch_size=16, seed=3)


def clusters(folder: Path, samples: int = 120) -> Dataset:
    """Four classes around four centres."""
    generator = np.random.default_rng(0)
    y = np.arange(samples) % 4
    x = 2.0 * np.eye(4, 6)[y] + 0.5 * generator.standard_normal((samples, 6))
    np.savez(folder / "clusters.npz", x=x.astype(np.float32), y=y)
    inputs = (TensorInfo(name="x", dtype="float32", shape=[None, 6]),)
    return open_dataset(folder / "clusters.npz", Data(dataset="d"), inputs, seed=0)


def network(seed: int = 0) -> nn.Module:
    """With BatchNorm (statistics), dropout (random numbers while training) and a tied weight."""
    torch.manual_seed(seed)
    hidden = nn.Linear(8, 8)
    tied = nn.Linear(8, 8)
    tied.weight = hidden.weight
    layers = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), hidden, nn.ReLU(), nn.Dropout(0.3), tied, nn.Linear(8, 4))
    return nn.Sequential(*layers)


def cross_entropy(module: nn.Module) -> Callable[[Batch], Tensor]:
    def loss_of(batch: Batch) -> Tensor:
        assert batch.labels is not None
        return F.cross_entropy(module(*batch.inputs), batch.labels)

    return loss_of


def judge_of(module: nn.Module, data: Dataset) -> Callable[[], Verdict]:
    def judge() -> Verdict:
        module.eval()
        batch = data.val.sample(1000, 0)
        assert batch.labels is not None
        with torch.no_grad():
            outputs = module(*batch.inputs)
        accuracy = (outputs.argmax(1) == batch.labels).float().mean().item()
        return Verdict(accuracy, F.cross_entropy(outputs, batch.labels).item())

    return judge


def fit(module: nn.Module, data: Dataset, plan: Plan = PLAN, **hooks: object) -> Log:
    return train(module, data.train, cross_entropy(module), judge_of(module, data), plan, **hooks)  # type: ignore[arg-type]


def same_weights(one: nn.Module, two: nn.Module) -> bool:
    other = weights_of(two)
    return all(torch.equal(value, other[name]) for name, value in weights_of(one).items())


def test_it_learns(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    log = fit(module, data, Plan(epochs=15, learning_rate=2e-2, weight_decay=0.0, batch_size=16, seed=0))
    assert log.epochs[0].verdict.score < 0.6
    assert log.epochs[log.best].verdict.score > 0.9
    assert judge_of(module, data)() == log.epochs[log.best].verdict
    assert not module.training


def test_the_same_seed_gives_the_same_weights_whatever_the_global_random_state(tmp_path: Path) -> None:
    data = clusters(tmp_path)
    first, second, other = network(), network(), network()
    fit(first, data)
    torch.rand(17)
    fit(second, data)
    assert same_weights(first, second)
    fit(other, data, Plan(epochs=4, learning_rate=1e-2, weight_decay=1e-2, batch_size=16, seed=4))
    assert not same_weights(first, other)


def test_the_global_random_state_is_left_as_it_was(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    before = torch.get_rng_state()
    fit(module, data)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 17, 22, 23])
def test_going_on_from_any_batch_gives_the_same_bits_as_never_stopping(tmp_path: Path, stop: int) -> None:
    data = clusters(tmp_path)
    whole, states = network(), list[StepState]()
    log = fit(whole, data, on_state=states.append, state_due=lambda: True)
    assert len(states) == 24, "four epochs of six batches"

    state = states[stop]
    save_file(dict(state.tensors), tmp_path / "state.safetensors", {"data": json.dumps(state.data)})
    loaded = StepState(json.loads(json.dumps(state.data)), load_file(tmp_path / "state.safetensors"))
    resumed = network(seed=9)
    assert not same_weights(whole, resumed)
    log_resumed = fit(resumed, data, resume=loaded)
    assert same_weights(whole, resumed)
    assert log_resumed == log


def test_a_state_is_not_changed_by_the_training_that_follows(tmp_path: Path) -> None:
    module, data, sums = network(), clusters(tmp_path), list[tuple[StepState, float]]()

    def total(state: StepState) -> float:
        return sum(value.double().sum().item() for value in state.tensors.values())

    fit(module, data, on_state=lambda state: sums.append((state, total(state))), state_due=lambda: True)
    assert len(sums) == 24
    for state, before in sums:
        assert total(state) == before


def test_keeping_states_changes_nothing(tmp_path: Path) -> None:
    data = clusters(tmp_path)
    one, two = network(), network()
    assert fit(one, data) == fit(two, data, state_due=lambda: True)
    assert same_weights(one, two)


@pytest.mark.parametrize("batches", [1, 3, 6, 8])
def test_when_time_runs_out_the_epoch_ends_there_is_judged_and_the_best_is_kept(tmp_path: Path, batches: int) -> None:
    module, data, states = network(), clusters(tmp_path), list[StepState]()
    log = fit(module, data, on_state=states.append, state_due=lambda: True, out_of_time=lambda: len(states) >= batches)
    assert log.cut_short
    assert len(states) == batches
    assert len(log.epochs) - 1 == math.ceil(batches / 6)
    assert judge_of(module, data)() == log.epochs[log.best].verdict


def test_with_no_time_at_all_the_start_is_kept(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    start = copy_weights(module)
    log = fit(module, data, out_of_time=lambda: True)
    assert (log.cut_short, len(log.epochs), log.best) == (True, 1, 0)
    assert all(torch.equal(start[name], value) for name, value in weights_of(module).items())


def test_the_result_is_never_worse_than_the_start(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    fit(module, data, Plan(epochs=15, learning_rate=2e-2, weight_decay=0.0, batch_size=16, seed=0))
    start = copy_weights(module)
    log = fit(module, data, Plan(epochs=2, learning_rate=5.0, weight_decay=0.0, batch_size=16, seed=0))
    assert log.best == 0
    assert all(torch.equal(start[name], value) for name, value in weights_of(module).items())


def test_of_equal_scores_the_lower_loss_wins() -> None:
    log = Log()
    assert log.add(Epoch(0, None, Verdict(0.9, 1.0)))
    assert log.add(Epoch(1, 1.0, Verdict(0.9, 0.5)))
    assert not log.add(Epoch(2, 1.0, Verdict(0.9, 0.5)))
    assert not log.add(Epoch(3, 1.0, Verdict(0.8, 0.1)))
    assert log.add(Epoch(4, 1.0, Verdict(0.95, 2.0)))
    assert log.best == 4


def test_a_loss_that_is_not_finite_fails(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    with pytest.raises(Failure, match="lower the learning rate") as caught:
        train(module, data.train, lambda batch: module(*batch.inputs).sum() * math.inf, judge_of(module, data), PLAN)
    assert caught.value.code is Code.NAN_LOSS
    assert caught.value.where == "epoch 1"


class Counts(nn.Module):
    """Only an integer parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = nn.Parameter(torch.arange(4), requires_grad=False)


@pytest.mark.parametrize("module", [nn.ReLU(), Counts()])
def test_a_network_without_floating_point_parameters_is_not_trainable(tmp_path: Path, module: nn.Module) -> None:
    data = clusters(tmp_path)
    with pytest.raises(Failure) as caught:
        train(module, data.train, lambda batch: batch.inputs[0].sum(), lambda: Verdict(0, 0), PLAN)
    assert caught.value.code is Code.NOT_TRAINABLE


def test_a_loss_without_gradient_is_not_trainable(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    with pytest.raises(Failure, match="No gradient") as caught:
        train(module, data.train, lambda batch: batch.inputs[0].sum(), judge_of(module, data), PLAN)
    assert caught.value.code is Code.NOT_TRAINABLE


def test_parameters_are_as_free_as_before(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    module.get_submodule("0").requires_grad_(False)
    before = module.get_submodule("0").get_parameter("weight").detach().clone()
    flags = [parameter.requires_grad for parameter in module.parameters()]
    fit(module, data)
    assert [parameter.requires_grad for parameter in module.parameters()] == flags
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not torch.equal(before, module.get_submodule("0").get_parameter("weight"))


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    fit(module, data)
    assert module.get_submodule("3").get_parameter("weight") is module.get_submodule("6").get_parameter("weight")


@pytest.mark.parametrize("samples", [3, 21, 42, 123])
@pytest.mark.parametrize("batch_size", [1, 16, 4096])
def test_any_number_of_samples_trains_through_batch_norm(tmp_path: Path, samples: int, batch_size: int) -> None:
    module, data = network(), clusters(tmp_path, samples)
    log = fit(module, data, Plan(epochs=1, learning_rate=1e-3, weight_decay=0.0, batch_size=batch_size, seed=0))
    assert len(log.epochs) == 2


def test_batch_norm_learns_its_statistics(tmp_path: Path) -> None:
    module, data = network(), clusters(tmp_path)
    before = module.get_submodule("1").get_buffer("running_mean").clone()
    log = fit(module, data)
    assert log.best > 0
    assert not torch.equal(before, module.get_submodule("1").get_buffer("running_mean"))


def test_norms_and_biases_do_not_decay(tmp_path: Path) -> None:
    data = clusters(tmp_path)
    module = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    start = copy_weights(module)
    verdicts = iter(range(10))
    plan = Plan(epochs=2, learning_rate=1e-2, weight_decay=1.0, batch_size=16, seed=0)
    train(module, data.train, lambda batch: module(*batch.inputs).sum() * 0.0, lambda: Verdict(next(verdicts), 0), plan)
    after = weights_of(module)
    assert after["0.weight"].norm() < start["0.weight"].norm()
    assert all(torch.equal(after[name], start[name]) for name in ("0.bias", "1.weight", "1.bias"))


def test_progress_rises_to_one_several_times_an_epoch(tmp_path: Path) -> None:
    module, data, said = network(), clusters(tmp_path), list[tuple[float, int]]()
    fit(module, data, on_progress=lambda fraction, epoch: said.append((fraction, epoch)))
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    for epoch in range(1, 5):
        assert 3 <= sum(e == epoch for _, e in said) <= 12


def test_the_learning_rate_rises_for_a_tenth_and_falls_to_nothing() -> None:
    rates = [learning_rate_at(step, 100, 2.0) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.0, abs=0.05)
    assert rates[-1] < 0.002
    assert learning_rate_at(0, 1, 2.0) == 2.0
