"""Metrics of sequences and embeddings against their definitions, written out the long way."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.metrics import METRICS, metrics_of
from models.spec import Data, Task
from tests.engine.measure.test_metrics import f1_of, measured, random, whole
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.data.labels import IGNORE_INDEX
from worker.engine.measure.agreement import AgreementMeter
from worker.engine.measure.metrics import at_chance

TOKENS = TensorInfo(name="tokens", dtype="int64", shape=[None, 6])


def counted(scores: Tensor, labels: Tensor) -> list[tuple[list[float], int]]:
    """Every position whose label counts, of scores [N, L, K]: its scores and its label."""
    rows = scores.flatten(0, 1).tolist()
    return [(row, y) for row, y in zip(rows, labels.flatten().tolist(), strict=True) if y != IGNORE_INDEX]


@pytest.mark.parametrize("classes_last", [True, False])
def test_tags_are_counted_one_by_one_and_ignored_ones_not_at_all(classes_last: bool) -> None:
    scores, labels = random(20, 6, 4), whole(4, 20, 6)
    labels[:, 4:] = IGNORE_INDEX
    labels[3] = IGNORE_INDEX
    pairs = counted(scores, labels)
    predicted, truth = [row.index(max(row)) for row, _ in pairs], [y for _, y in pairs]
    values = measured("tagging", scores if classes_last else scores.movedim(2, 1).contiguous(), labels, batch=1)
    assert values["accuracy"] == sum(p == y for p, y in zip(predicted, truth, strict=True)) / len(pairs)
    assert values["macro_f1"] == pytest.approx(sum(f1_of(predicted, truth, c) for c in range(4)) / 4)


def test_one_score_a_position_tells_two_tags_apart() -> None:
    logits, labels = random(12, 6), whole(2, 12, 6)
    two = torch.stack([torch.zeros_like(logits), logits], dim=2)
    assert measured("tagging", logits, labels) == pytest.approx(measured("tagging", two, labels))


@pytest.mark.parametrize("probabilities", [False, True])
def test_perplexity_is_the_exponential_of_the_mean_negative_log_likelihood(probabilities: bool) -> None:
    scores, labels = random(9, 6, 11), whole(11, 9, 6)
    labels[:, -1] = IGNORE_INDEX
    pairs = counted(scores.double(), labels)
    losses = [math.log(sum(math.exp(value) for value in row)) - row[y] for row, y in pairs]
    values = measured("causal_lm", scores.softmax(2) if probabilities else scores, labels)
    assert values["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert values["accuracy"] == sum(row.index(max(row)) == y for row, y in pairs) / len(pairs)


def test_a_perplexity_is_never_infinite_but_for_scores_that_are_not_numbers() -> None:
    far = torch.zeros(1, 2, 3)
    far[..., 0] = 1e6
    assert math.isfinite(measured("causal_lm", far, torch.ones(1, 2, dtype=torch.int64))["perplexity"])
    assert math.isnan(measured("causal_lm", far * math.nan, torch.ones(1, 2, dtype=torch.int64))["perplexity"])


def test_recall_at_one_asks_for_the_nearest_other_sample() -> None:
    rows, labels = random(40, 5), whole(6, 40)
    labels[7] = 99  # belongs to nobody: not asked about
    hits, asked = 0, 0
    for i in range(40):
        cosines = [
            -2.0 if j == i else float((rows[i] * rows[j]).sum() / (rows[i].norm() * rows[j].norm())) for j in range(40)
        ]
        asked += i != 7
        hits += i != 7 and bool(labels[cosines.index(max(cosines))] == labels[i])
    assert measured("embedding", rows, labels)["recall_at_1"] == hits / asked
    assert measured("embedding", (rows * 3)[:, :, None], labels)["recall_at_1"] == hits / asked


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        ("tagging", random(4, 5, 3), whole(3, 4, 6)),
        ("tagging", random(4, 5), whole(3, 4, 6)),
        ("causal_lm", random(4, 3, 6), whole(3, 4, 6)),
        ("causal_lm", random(4, 3), whole(3, 4, 6)),
        ("embedding", random(4, 3, 2), whole(3, 4)),
        ("embedding", random(4), whole(3, 4)),
    ],
)
def test_outputs_of_another_shape_are_refused(task: Task, outputs: Tensor, labels: Tensor) -> None:
    with pytest.raises(Failure) as caught:
        measured(task, outputs, labels)
    assert caught.value.code is Code.DATASET_MISMATCH
    assert f"The task '{task}' takes an output [N, " in caught.value.message


@pytest.mark.parametrize("task", ["tagging", "causal_lm"])
def test_padding_alone_cannot_be_judged(task: Task) -> None:
    with pytest.raises(Failure, match="No position of one of the splits has a label that counts"):
        measured(task, random(4, 6, 3), torch.full((4, 6), IGNORE_INDEX))


@pytest.mark.parametrize("task", ["tagging", "causal_lm", "embedding"])
def test_the_metrics_are_those_of_the_task(task: Task) -> None:
    outputs = random(8, 5) if task == "embedding" else random(8, 6, 7)
    values = measured(task, outputs, whole(3, 8) if task == "embedding" else whole(7, 8, 6))
    assert (*values, "agreement") == metrics_of(task)
    assert set(values) <= set(METRICS)


def test_sequences_agree_where_positions_count() -> None:
    a, b = random(5, 6, 4), random(5, 6, 4, seed=1)
    labels = whole(4, 5, 6)
    labels[:, 3:] = IGNORE_INDEX
    same = (a.argmax(2) == b.argmax(2))[:, :3].double().mean().item()
    for first, second in ((a, b), (a.movedim(2, 1), b.movedim(2, 1))):
        meter = AgreementMeter("tagging")
        meter.add(first[:2], second[:2], labels[:2])
        meter.add(first[2:], second[2:], labels[2:])
        assert meter.value() == pytest.approx(same)


def test_embeddings_agree_by_their_cosine() -> None:
    a, b = random(5, 4), random(5, 4, seed=1)
    meter = AgreementMeter("embedding")
    meter.add(a, a * 3)
    assert meter.value() == pytest.approx(1.0)
    meter.add(a, b)
    cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(a, b, strict=True)]
    assert meter.value() == pytest.approx((5 + sum(cosines)) / 10)


def opened(folder: Path, arrays: dict[str, Any], **data: Any) -> Dataset:
    np.savez(folder / "data.npz", **arrays)
    return open_dataset(folder / "data.npz", Data(dataset="d", **data), (TOKENS,), seed=0)


def test_a_model_that_knows_only_how_frequent_tokens_are_is_at_chance(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 4, (400, 6)) ** 2
    dataset = opened(tmp_path, {"tokens": tokens}, task="causal_lm")
    labels = dataset.val.labels()
    assert labels is not None
    share = torch.bincount(labels[labels >= 0]).double()
    share = share[share > 0] / share.sum()
    unigram = float(torch.exp(-(share * share.log()).sum()))
    assert at_chance("perplexity", unigram, dataset)
    assert not at_chance("perplexity", 1.5, dataset)
    assert at_chance("accuracy", float(share.max()), dataset)
    assert not at_chance("accuracy", 0.9, dataset)


def test_the_most_frequent_tag_is_at_chance(tmp_path: Path) -> None:
    tags = (np.random.default_rng(0).random((400, 6)) < 0.2).astype(np.int64) * 2
    tags[:, 0] = 255
    dataset = opened(tmp_path, {"tokens": np.ones((400, 6), int), "y": tags}, task="tagging", ignore=255)
    assert at_chance("accuracy", 0.8, dataset)
    assert not at_chance("accuracy", 0.99, dataset)


def test_any_neighbour_is_at_chance(tmp_path: Path) -> None:
    arrays = {"tokens": np.ones((400, 6), int), "y": np.arange(400) % 4}
    dataset = opened(tmp_path, arrays, task="embedding")
    assert at_chance("recall_at_1", 0.25, dataset)
    assert not at_chance("recall_at_1", 0.6, dataset)
