"""Training in 8 bits: the same numbers as the integers, gradients by the book, the better of two, and going on."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from models.spec import QatStep, QuantizeStep, SparsifyStep
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.checkpoint import restore_checkpoint, save_checkpoint
from worker.engine.graph.integer import activation_grid, integer_network, round_trip
from worker.engine.interrupts import Interrupts
from worker.engine.measure.compare import outputs_of, relative_difference
from worker.engine.quantize.fake import ROUNDERS, Rounder, with_fakes, without_fakes
from worker.engine.quantize.fake import _round as rounding
from worker.engine.quantize.grids import put_on_grid
from worker.engine.quantize.qat.step import TRAINING, run
from worker.engine.quantize.static import Plan, prepare
from worker.engine.quantize.step import run as quantize
from worker.engine.run import Run
from worker.engine.sparsify.step import run as sparsify
from worker.engine.subject import StepState, Subject
from worker.engine.train.step import run as finetune


def qat(**fields: Any) -> QatStep:
    usual = {"calibration_samples": 16, "epochs": 2, "batch_size": 16, "learning_rate": 1e-3}
    return QatStep.model_validate({"step": "quantize", "method": "qat", **usual, **fields})


def begun(subject: Subject, folder: Path, step: QatStep) -> Run:
    started = run_in(folder, step, data=dataset_for(subject, folder, 80))
    started.train = finetune
    return started


def planned(name: str, folder: Path, **fields: Any) -> tuple[Subject, Plan]:
    subject = subject_of(name)
    step = qat(**fields)
    return subject, prepare(subject, step, begun(subject, folder, step))


def faked(plan: Plan, *, follows: bool = True, learns: bool = False) -> fx.GraphModule:
    follow = dict.fromkeys(plan.placement.layers, follows)
    activations = plan.quantization({}).activations
    return with_fakes(
        plan.graph, plan.placement, activations, plan.scales, plan.largest, follows=follow, learn_scales=learns
    )


def outputs(network: fx.GraphModule, subject: Subject) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return outputs_of(network.eval()(*subject.example_inputs(5, seed=3)))


def as_integers(plan: Plan) -> fx.GraphModule:
    graph = copy.deepcopy(plan.graph)
    put_on_grid(graph, plan.scales, plan.largest)
    return integer_network(graph, plan.quantization({}))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3", "vit", "two_towers"])
def test_a_fake_quantized_graph_computes_what_its_integers_do(name: str, tmp_path: Path) -> None:
    subject, plan = planned(name, tmp_path, weight_ranges="mse")
    expected = outputs(as_integers(plan), subject)
    for learns in (False, True):
        network = faked(plan, follows=False, learns=learns)
        assert relative_difference(expected, outputs(network, subject)) < 1e-5
    kept = {name for name, _ in plan.graph.named_parameters()}
    assert kept == {name for name, _ in faked(plan, follows=False).named_parameters()}


def test_what_was_learnt_comes_back_as_the_same_integers(tmp_path: Path) -> None:
    subject, plan = planned("resnet18", tmp_path)
    network = faked(plan, learns=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1 + 0.01 * torch.rand_like(parameter))
    expected = outputs(network, subject)
    graph, ranges, scales = without_fakes(network)
    assert dict(graph.named_parameters()).keys() == dict(plan.graph.named_parameters()).keys()
    assert ROUNDERS not in dict(graph.named_modules())
    moved = Plan(graph, plan.skipped, plan.placement, ranges, scales, plan.largest, {}, {})
    assert relative_difference(expected, outputs(as_integers(moved), subject)) < 1e-5


@pytest.mark.parametrize(("scale", "zero_point"), [(0.037, 0), (0.25, 128), (1.7, 255), (1e-6, 3)])
def test_the_range_of_a_rounder_gives_its_own_grid(scale: float, zero_point: int) -> None:
    rounder = Rounder(scale, zero_point, learns=False)
    assert activation_grid(*rounder.range()) == (float(rounder.scale), zero_point)


def test_rounding_is_that_of_the_integers_and_its_gradients_those_published() -> None:
    """Esser et al., 2020, equations 1 to 3; outside of the range only the scale has one."""
    x = torch.linspace(-9, 9, 181, requires_grad=True)
    scale = torch.tensor(0.03, requires_grad=True)
    damping = 1 / math.sqrt(181 * 255)
    y = rounding(x, scale, 100, 0, 255, damping)
    torch.testing.assert_close(y.detach(), round_trip(x.detach(), 0.03, 100))
    torch.autograd.backward(y.sum())
    steps = x.detach() / scale.detach()
    inside = (steps.round() >= -100) & (steps.round() <= 155)
    assert x.grad is not None
    assert torch.equal(x.grad, inside.float())
    per_step = torch.where(inside, steps.round() - steps, torch.where(steps < 0, -100.0, 155.0))
    torch.testing.assert_close(scale.grad, per_step.sum() * damping)


@pytest.mark.parametrize("learns", [False, True])
def test_training_moves_the_network_and_the_better_of_two_is_kept(learns: bool, tmp_path: Path) -> None:
    subject, step = subject_of("vgg"), qat(learn_scales=learns)
    details = run(subject, step, begun(subject, tmp_path, step))
    assert details["method"] == "qat"
    assert details["kept"] == ("qat" if details["training"]["best_epoch"] else "ptq")
    assert max(details["ptq"], details["qat"]) == details["training"]["metric_after"]
    assert [record.step for record in subject.records] == ["quantize"]
    assert subject.quantization is not None
    network = subject.network()
    for name, scale in subject.quantization.weight_scales.items():
        weight = subject.graph.get_parameter(f"{name}.weight")
        integers = network.get_buffer(f"{name}.weight")
        integers = integers.t() if weight.dim() == 2 else integers
        assert torch.equal(integers * scale.reshape([-1] + [1] * (weight.dim() - 1)), weight)


def test_training_that_does_not_help_leaves_what_there_was_without_it(tmp_path: Path) -> None:
    subject, plain = subject_of("vgg"), subject_of("vgg")
    step = qat(learning_rate=9.0, epochs=1)
    details = run(subject, step, begun(subject, tmp_path, step))
    assert details["kept"] == "ptq"
    static = QuantizeStep(step="quantize", calibration_samples=16)
    quantize(plain, static, run_in(tmp_path, static, data=dataset_for(plain, tmp_path, 80)))
    pairs = zip(outputs(subject.network(), subject), outputs(plain.network(), plain), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class _AfterBatches(Interrupts):
    """A state is due after so many batches, once."""

    def __init__(self, batches: int) -> None:
        super().__init__(math.inf, math.inf)
        self.left = batches

    def state_due(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("learns", [False, True])
def test_training_in_8_bits_that_was_interrupted_ends_with_the_same_bits_and_zeros(
    learns: bool, tmp_path: Path
) -> None:
    step, sparse = qat(learn_scales=learns), SparsifyStep(step="sparsify", amount=0.6)
    whole = subject_of("vgg")
    sparsify(whole, sparse, begun(whole, tmp_path, step))
    first, kept = begun(whole, tmp_path, step), tmp_path / "inside.safetensors"

    def keep(state: StepState) -> None:
        assert whole.records[-1].step == TRAINING
        save_checkpoint(whole, [], kept, state)

    first.keep_state, first.interrupts = keep, _AfterBatches(6)
    expected = run(whole, step, first)

    resumed = subject_of("vgg")
    second = begun(resumed, tmp_path, step)
    _, second.state = restore_checkpoint(resumed, kept)
    assert run(resumed, step, second) == expected
    pairs = zip(whole.graph.state_dict().items(), resumed.graph.state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    for ours, other in zip(whole.records, resumed.records, strict=True):
        assert ours.data == other.data
        assert all(torch.equal(value, other.tensors[name]) for name, value in ours.tensors.items())
    for name, mask in resumed.masks.items():
        assert not bool(resumed.graph.get_parameter(name)[~mask].any())
