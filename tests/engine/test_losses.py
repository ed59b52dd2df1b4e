"""Losses against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import Code, Failure
from models.spec import Task
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.losses import (
    LossKind,
    Objective,
    as_logits,
    gives_probabilities,
    objective_for,
    softened_divergence,
    task_loss,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def objective(kind: LossKind, teacher: tuple[Tensor, ...], task: Task = "classification", output: int = 0) -> Objective:
    return objective_for(kind, task, output, teacher, weight=0.25, temperature=4.0)


def test_softened_divergence_is_hintons_formula() -> None:
    own, wanted, temperature = random(3, 5), random(3, 5, seed=1), 4.0
    expected = 0.0
    for s, t in zip(own.tolist(), wanted.tolist(), strict=True):
        p = [math.exp(value / temperature) for value in t]
        q = [math.exp(value / temperature) for value in s]
        expected += sum(a / sum(p) * (math.log(a / sum(p)) - math.log(b / sum(q))) for a, b in zip(p, q, strict=True))
    got = softened_divergence(own, wanted, temperature)
    assert got.item() == pytest.approx(expected / 3 * temperature**2, rel=1e-5)


def test_softened_divergence_keeps_its_gradient_at_high_temperature() -> None:
    wanted = random(4, 6, seed=1)
    norms = []
    for temperature in (50.0, 100.0):
        own = random(4, 6).requires_grad_()
        torch.autograd.backward(softened_divergence(own, wanted, temperature))
        assert own.grad is not None
        norms.append(own.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_softened_divergence_of_maps_is_the_mean_over_pixels() -> None:
    own, wanted = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    own_pixels, wanted_pixels = (value.permute(0, 2, 3, 1).reshape(-1, 3) for value in (own, wanted))
    assert softened_divergence(own, wanted, 2.0).item() == pytest.approx(
        softened_divergence(own_pixels, wanted_pixels, 2.0).item()
    )


def test_nothing_is_left_to_learn_from_equal_outputs() -> None:
    outputs = (random(8, 5), random(8, 3, 2))
    assert objective("distill", outputs).loss(outputs, outputs, None).item() == pytest.approx(0.0, abs=1e-6)


def test_other_outputs_count_relative_to_their_variance() -> None:
    teacher = (random(64, 5), 1000.0 * random(64, 3))
    own = (teacher[0], teacher[1] + 100.0)
    loss = objective("distill", teacher).loss(own, teacher, None)
    assert loss.item() == pytest.approx(100.0**2 / teacher[1].var(correction=0).item() / 2, rel=1e-4)


def test_the_output_that_counts_gets_the_divergence() -> None:
    teacher, own = (random(8, 3), random(8, 5)), (random(8, 3), random(8, 5, seed=3))
    loss = objective("distill", teacher, output=1).loss(own, teacher, None)
    assert loss.item() == pytest.approx(softened_divergence(own[1], teacher[1], 4.0).item() / 2)


def test_without_a_task_every_output_is_compared_by_squares() -> None:
    teacher, own = (random(8, 5),), (random(8, 5, seed=1),)
    loss = objective("distill", teacher, task="none").loss(own, teacher, None)
    expected = F.mse_loss(own[0], teacher[0]) / teacher[0].var(correction=0)
    assert loss.item() == pytest.approx(expected.item())


def test_integer_outputs_are_left_out_and_alone_refused() -> None:
    teacher = (random(8, 5), torch.arange(8))
    assert objective("distill", teacher).loss(teacher, teacher, None).item() == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(Failure) as caught:
        objective("distill", (torch.arange(8),), task="none")
    assert caught.value.code is Code.NOT_TRAINABLE


def test_both_weighs_the_two_losses() -> None:
    teacher, own, labels = (random(8, 5),), (random(8, 5, seed=1),), torch.arange(8) % 5
    parts = [objective(kind, teacher).loss(own, teacher, labels).item() for kind in ("task", "distill", "both")]
    assert parts[0] == pytest.approx(F.cross_entropy(own[0], labels).item())
    assert parts[2] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1])


def test_task_losses_are_the_usual_ones() -> None:
    rows = torch.randint(0, 2, (8, 5)).float()
    assert torch.equal(
        task_loss("multilabel", random(8, 5), rows), F.binary_cross_entropy_with_logits(random(8, 5), rows)
    )
    assert torch.equal(task_loss("regression", random(8, 1), rows[:, 0]), F.mse_loss(random(8), rows[:, 0]))
    maps = torch.randint(0, 3, (2, 4, 4))
    maps[0, 0] = IGNORE_INDEX
    assert torch.equal(task_loss("segmentation", random(2, 3, 4, 4), maps), F.cross_entropy(random(2, 3, 4, 4), maps))
    labels = torch.arange(8) % 2
    expected = F.binary_cross_entropy_with_logits(random(8), labels.float())
    assert torch.equal(task_loss("classification", random(8, 1), labels), expected)


def test_ignored_pixels_of_a_mask_do_not_count() -> None:
    masks = torch.randint(0, 2, (2, 4, 4))
    masks[0] = IGNORE_INDEX
    logits = random(2, 1, 4, 4)
    expected = F.binary_cross_entropy_with_logits(logits[1, 0], masks[1].float())
    assert torch.equal(task_loss("segmentation", logits, masks), expected)


def test_an_output_of_another_shape_is_a_mismatch() -> None:
    with pytest.raises(Failure) as caught:
        task_loss("regression", random(8, 2), random(8, 3))
    assert caught.value.code is Code.DATASET_MISMATCH


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_softmax_at_the_end_is_undone(task: Task) -> None:
    shape, labels = (
        ((8, 5), torch.arange(8) % 5) if task == "classification" else ((2, 5, 4, 4), torch.ones(2, 4, 4).long())
    )
    logits = random(*shape)
    probabilities = logits.softmax(1)
    assert gives_probabilities(probabilities, task)
    assert not gives_probabilities(logits, task)
    assert not gives_probabilities(logits.sigmoid(), task)
    got = task_loss(task, probabilities, labels, probabilities=True)
    assert got.item() == pytest.approx(task_loss(task, logits, labels).item(), rel=1e-5)
    own = random(*shape, seed=2)
    soft = softened_divergence(own.softmax(1), probabilities, 3.0, probabilities=True)
    assert soft.item() == pytest.approx(softened_divergence(own, logits, 3.0).item(), rel=1e-4)


def test_a_sigmoid_at_the_end_is_undone() -> None:
    logits = random(8, 5)
    assert gives_probabilities(logits.sigmoid(), "multilabel")
    assert gives_probabilities(logits[:, :1].sigmoid(), "classification")
    assert torch.allclose(as_logits(logits.sigmoid(), "multilabel", True), logits, atol=1e-5)


def test_numbers_between_zero_and_one_are_no_probabilities_without_classes() -> None:
    assert not gives_probabilities(torch.rand(8, 5), "regression")
    assert not gives_probabilities(torch.rand(8, 5), "none")


def test_constant_outputs_have_a_scale() -> None:
    for value in (0.0, 5.0):
        teacher = (torch.full((8, 2), value),)
        loss = objective("distill", teacher, task="none").loss((teacher[0] + 1.0,), teacher, None)
        assert math.isfinite(loss.item())


def many(values: list[float], count: int = 40_000) -> Tensor:
    """The same answer for `count` samples, so that one call draws that many targets."""
    return torch.tensor(values).expand(count, len(values)).contiguous()


def drawn_gradients(own: list[float], wanted: list[float]) -> tuple[Tensor, Tensor]:
    """For each sample, the gradient of `sampled_loss` by its outputs; and that of the distillation loss."""
    teacher = (many(wanted),)
    learnt = objective_for("distill", "none", 0, teacher, weight=1.0, temperature=1.0)
    outputs = many(own).requires_grad_()
    loss = learnt.sampled_loss((outputs,), teacher, torch.Generator().manual_seed(0))
    (drawn,) = torch.autograd.grad(loss, outputs)
    (whole,) = torch.autograd.grad(learnt.loss((outputs,), teacher, None), outputs)
    return drawn * len(outputs), whole[0] * len(outputs)


def test_sampled_targets_have_half_the_gradient_of_the_squared_error_on_average() -> None:
    drawn, whole = drawn_gradients([0.5, -0.5, 1.0], [1.0, 0.0, -1.0])
    torch.testing.assert_close(drawn.mean(0), whole / 2, rtol=0.05, atol=0.01)


def test_at_the_teachers_answer_their_squares_are_the_second_derivative() -> None:
    drawn, whole = drawn_gradients([1.0, 0.0, -1.0], [1.0, 0.0, -1.0])
    assert float(whole.abs().max()) < 1e-6
    variance = 2 / 3  # Of 1, 0, -1; the loss is the mean over three outputs of (y - y0)² / (2 variance).
    torch.testing.assert_close(drawn.square().mean(0), torch.full((3,), 1 / (3 * variance)), rtol=0.05, atol=0.0)


def test_targets_for_probabilities_are_drawn_around_their_scores() -> None:
    scores = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 1.0]])
    teacher, centred = (scores.softmax(1),), scores.log_softmax(1)
    learnt = objective_for("distill", "classification", 0, teacher, weight=1.0, temperature=1.0)
    assert learnt.probabilities
    drawn = learnt.sampled_loss((random(2, 3).softmax(1),), teacher, torch.Generator().manual_seed(7))
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(7))
    variance = centred.var(correction=0)
    error = random(2, 3).log_softmax(1) - centred - (3 * variance).sqrt() * noise
    torch.testing.assert_close(drawn, error.square().mean() / (2 * variance))


def test_targets_of_several_outputs_are_drawn_so_that_their_squares_add_up() -> None:
    first, second, whole_numbers = many([1.0, -1.0]), many([3.0, 1.0, 2.0]), torch.zeros(40_000, 1, dtype=torch.int64)
    teacher = (first, whole_numbers, second)
    learnt = objective_for("distill", "none", 0, teacher, weight=1.0, temperature=1.0)
    outputs = (first.clone().requires_grad_(), whole_numbers, second.clone().requires_grad_())
    loss = learnt.sampled_loss(outputs, teacher, torch.Generator().manual_seed(0))
    drawn = torch.autograd.grad(loss, (outputs[0], outputs[2]))
    squares = [(gradient * 40_000).square().mean(0) for gradient in drawn]
    # The mean over two outputs of the mean over 2 or 3 numbers of (y - y0)² / (2 variance); variances 1 and 2/3.
    torch.testing.assert_close(squares[0], torch.full((2,), 1 / (2 * 2)), rtol=0.05, atol=0.0)
    torch.testing.assert_close(squares[1], torch.full((3,), 1 / (2 * 3 * (2 / 3))), rtol=0.05, atol=0.0)


def test_the_same_generator_draws_the_same_targets() -> None:
    teacher = (random(3, 5),)
    learnt = objective("distill", teacher)
    first, second, third = (
        learnt.sampled_loss((random(3, 5, seed=1),), teacher, torch.Generator().manual_seed(seed)).item()
        for seed in (4, 4, 5)
    )
    assert first == second != third
