"""What is set to zero stays exactly zero: through training, stopped and resumed, cuts, and 8-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.spec import FinetuneStep, PruneStep, QuantizeStep, SparsifyStep
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.interrupts import Interrupts
from worker.engine.prune.step import run as prune
from worker.engine.quantize.step import run as quantize
from worker.engine.run import Run
from worker.engine.sparsify.matrices import sparse_weights
from worker.engine.sparsify.step import run as sparsify
from worker.engine.subject import StepState, Subject
from worker.engine.train.step import run as finetune

FINETUNE = FinetuneStep(step="finetune", epochs=2, learning_rate=5e-3, batch_size=16)


def step(**fields: Any) -> SparsifyStep:
    return SparsifyStep.model_validate({"step": "sparsify", **fields})


def begun(subject: Subject, folder: Path) -> Run:
    return run_in(folder, data=dataset_for(subject, folder, 80))


def train(subject: Subject, run: Run) -> None:
    details = finetune(subject, FINETUNE, run)
    assert details["best_epoch"] > 0, "otherwise the start was kept, and nothing was trained"


def zeros(subject: Subject) -> dict[str, Tensor]:
    """Where a weight is positive zero, bit for bit."""
    return {name: subject.graph.get_parameter(name).view(torch.int32) == 0 for name in subject.masks}


def assert_kept(subject: Subject) -> None:
    for name, bits in zeros(subject).items():
        assert torch.equal(bits, ~subject.masks[name]), name


@pytest.mark.parametrize("name", ["resnet18", "lstm", "tied_language_model"])
def test_zeros_stay_zero_and_the_rest_learns(name: str, tmp_path: Path) -> None:
    subject = subject_of(name)
    sparsify(subject, step(amount=0.8), begun(subject, tmp_path))
    before = {parameter: subject.graph.get_parameter(parameter).clone() for parameter in subject.masks}
    train(subject, begun(subject, tmp_path))
    assert_kept(subject)
    assert all(not torch.equal(subject.graph.get_parameter(parameter), value) for parameter, value in before.items())


def test_two_of_four_hold_in_every_group_after_training(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    covered = {
        row["parameter"]
        for row in sparsify(subject, step(pattern={"n_of_m": [2, 4]}), begun(subject, tmp_path))["layers"]
    }
    train(subject, begun(subject, tmp_path))
    assert_kept(subject)
    for weight in sparse_weights(subject.graph):
        if weight.parameter in covered:
            zero = (weight.matrices(weight.tensor) == 0).float()
            groups = zero.reshape(*zero.shape[:2], -1, 4).sum(-1)
            assert int(groups.min()) == int(groups.max()) == 2


class _AfterBatches(Interrupts):
    """A state is due after so many batches, once."""

    def __init__(self, batches: int) -> None:
        super().__init__(float("inf"), float("inf"))
        self.left = batches

    def state_due(self) -> bool:
        self.left -= 1
        return self.left == 0


def test_training_that_goes_on_from_a_checkpoint_ends_with_the_same_bytes_and_the_same_zeros(tmp_path: Path) -> None:
    whole = subject_of("gru")
    sparsify(whole, step(amount=0.7), begun(whole, tmp_path))
    run = begun(whole, tmp_path)
    kept: list[Path] = []

    def keep(state: StepState) -> None:
        kept.append(tmp_path / "inside.safetensors")
        save_checkpoint(whole, [], kept[-1], state)

    run.keep_state, run.interrupts = keep, _AfterBatches(6)
    train(whole, run)
    assert kept

    resumed = subject_of("gru")
    again = begun(resumed, tmp_path)
    _, again.state = restore_checkpoint(resumed, kept[0])
    train(resumed, again)
    assert_kept(resumed)
    pairs = zip(whole.graph.state_dict().items(), resumed.graph.state_dict().items(), strict=True)
    for (name, expected), (_, found) in pairs:
        assert torch.equal(expected, found), name


def test_zeros_stay_zero_through_a_cut_and_training_after_it(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    sparsify(subject, step(amount=0.6), begun(subject, tmp_path))
    cut = PruneStep.model_validate({"step": "prune", "amount": {"channels": 0.4}, "round_to": 2})
    prune(subject, cut, begun(subject, tmp_path))
    train(subject, begun(subject, tmp_path))
    assert_kept(subject)


def test_zeros_are_the_integer_zero(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    sparsify(subject, step(pattern={"n_of_m": [2, 4]}), begun(subject, tmp_path))
    quantize(subject, QuantizeStep(step="quantize", calibration_samples=16), begun(subject, tmp_path))
    network = subject.network()
    assert subject.quantization is not None
    held = 0
    for name in subject.quantization.weight_scales:
        mask = subject.masks.get(f"{name}.weight")
        if mask is not None:
            integers = network.get_buffer(f"{name}.weight")
            integers = integers.t() if integers.shape != mask.shape else integers
            assert integers.dtype == torch.int8
            assert not bool(integers[~mask].any())
            held += 1
    assert held > 10


@pytest.mark.parametrize("criterion", ["l2", "lamp", "gradient", "taylor", "hessian"])
def test_every_criterion_ranks_weights(criterion: str, tmp_path: Path) -> None:
    subject = subject_of("gru")
    details = sparsify(subject, step(amount=0.5, criterion=criterion, samples=8), begun(subject, tmp_path))
    assert details["reached"] == pytest.approx(0.5, abs=1e-3)
    differentiated = criterion in ("gradient", "taylor", "hessian")
    assert details["gradients"] == ({"loss": "distill", "samples": 8} if differentiated else None)
    assert_kept(subject)
