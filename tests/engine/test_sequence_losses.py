"""Losses of sequences and embeddings against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.engine.test_losses import random
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.losses import cosine_distance, objective_for, softened_divergence, supervised_contrast, task_loss


def test_the_loss_of_positions_is_their_mean_cross_entropy() -> None:
    scores, labels = random(3, 4, 5), torch.randint(0, 5, (3, 4), generator=torch.Generator().manual_seed(0))
    labels[0, 2:] = IGNORE_INDEX
    losses = [
        math.log(sum(math.exp(value) for value in row)) - row[y]
        for rows, tags in zip(scores.tolist(), labels.tolist(), strict=True)
        for row, y in zip(rows, tags, strict=True)
        if y != IGNORE_INDEX
    ]
    expected = sum(losses) / len(losses)
    assert task_loss("causal_lm", scores, labels).item() == pytest.approx(expected, rel=1e-5)
    assert task_loss("tagging", scores, labels).item() == pytest.approx(expected, rel=1e-5)
    assert task_loss("tagging", scores.movedim(2, 1), labels).item() == pytest.approx(expected, rel=1e-5)
    given = task_loss("tagging", scores.softmax(2), labels, probabilities=True)
    assert given.item() == pytest.approx(expected, rel=1e-4)


def test_one_score_a_position_is_a_yes_or_no() -> None:
    scores, labels = random(3, 4), torch.randint(0, 2, (3, 4), generator=torch.Generator().manual_seed(0))
    expected = F.binary_cross_entropy_with_logits(scores, labels.float())
    assert task_loss("tagging", scores, labels).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("task", ["tagging", "causal_lm", "segmentation"])
def test_a_batch_in_which_nothing_counts_moves_nothing(task: str) -> None:
    scores = random(2, 3, 3, 3).requires_grad_() if task == "segmentation" else random(2, 3, 3).requires_grad_()
    labels = torch.full((2, 3, 3) if task == "segmentation" else (2, 3), IGNORE_INDEX)
    loss = task_loss(task, scores, labels)  # type: ignore[arg-type]
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_supervised_contrast_is_khoslas_second_equation() -> None:
    rows, labels, temperature = random(6, 3), [0, 1, 0, 2, 1, 0], 0.3  # 2 has no other: no anchor
    z = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows.tolist()]

    def score(i: int, j: int) -> float:
        return math.exp(sum(a * b for a, b in zip(z[i], z[j], strict=True)) / temperature)

    anchors = []
    for i in range(6):
        positives = [p for p in range(6) if p != i and labels[p] == labels[i]]
        if positives:
            below = sum(score(i, a) for a in range(6) if a != i)
            anchors.append(sum(-math.log(score(i, p) / below) for p in positives) / len(positives))
    got = supervised_contrast(rows, torch.tensor(labels), temperature)
    assert got.item() == pytest.approx(sum(anchors) / len(anchors), rel=1e-5)


def test_without_a_pair_there_is_nothing_to_contrast() -> None:
    rows = random(4, 3).requires_grad_()
    loss = task_loss("embedding", rows, torch.arange(4))
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.zeros_like(rows))
    assert torch.isfinite(supervised_contrast(random(1, 3), torch.tensor([0])))


def test_contrast_pulls_a_class_together() -> None:
    rows = random(8, 4).requires_grad_()
    labels = torch.arange(8) % 2
    optimizer = torch.optim.SGD([rows], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        torch.autograd.backward(supervised_contrast(rows, labels))
        optimizer.step()
    cosines = F.normalize(rows.detach()) @ F.normalize(rows.detach()).T
    same = labels[:, None] == labels[None, :]
    assert cosines[same].min() > cosines[~same].max()


def test_embeddings_are_distilled_by_their_direction() -> None:
    own, wanted = random(5, 3), random(5, 3, seed=1)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(own, wanted, strict=True)]
    learnt = objective_for("distill", "embedding", 0, (wanted,), weight=1.0, temperature=1.0)
    assert learnt.loss((own,), (wanted,), None).item() == pytest.approx(1 - sum(cosines) / 5, rel=1e-5)
    assert cosine_distance(wanted * 7, wanted).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("classes_last", [True, False])
def test_positions_are_softened_over_their_classes(classes_last: bool) -> None:
    own, wanted = random(2, 4, 5), random(2, 4, 5, seed=1)
    labels = torch.zeros(2, 4, dtype=torch.int64)
    expected = softened_divergence(own.flatten(0, 1), wanted.flatten(0, 1), 4.0)
    if not classes_last:
        own, wanted = own.movedim(2, 1), wanted.movedim(2, 1)
    learnt = objective_for("distill", "tagging", 0, (wanted,), labels, weight=1.0, temperature=4.0)
    assert learnt.loss((own,), (wanted,), labels).item() == pytest.approx(expected.item(), rel=1e-5)


def test_scores_without_classes_are_not_softened() -> None:
    own, wanted = random(2, 4), random(2, 4, seed=1)
    learnt = objective_for("distill", "tagging", 0, (wanted,), torch.zeros(2, 4), weight=1.0, temperature=4.0)
    expected = F.mse_loss(own, wanted) / wanted.var(correction=0)
    assert learnt.loss((own,), (wanted,), None).item() == pytest.approx(expected.item(), rel=1e-5)
