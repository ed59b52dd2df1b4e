"""Fine-tuning on each task of sequences and embeddings, from token numbers on: damaged networks that recover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.spec import FinetuneStep
from tests.engine.subjects import lifted, subject_of
from tests.engine.train.test_step import damage, started
from worker.engine.subject import Subject
from worker.engine.train.step import run

LENGTH = 8


class Tagger(nn.Module):
    """An LSTM with a tag for each word, classes last or first."""

    def __init__(self, classes_last: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12)
        self.lstm = nn.LSTM(12, 12, batch_first=True)
        self.head = nn.Linear(12, 3)
        self.classes_last = classes_last

    def forward(self, words: Tensor) -> Tensor:
        tags: Tensor = self.head(self.lstm(self.words(words))[0])
        return tags if self.classes_last else tags.transpose(1, 2)


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.body = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6))

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.body(self.words(words).mean(1))
        return found


def words(count: int = 160) -> Any:
    return np.random.default_rng(0).integers(1, 40, (count, LENGTH))


def example() -> tuple[Tensor]:
    return (torch.randint(1, 40, (2, LENGTH), generator=torch.Generator().manual_seed(0)),)


def tuned(subject: Subject, folder: Path, arrays: dict[str, Any], loss: str | None, **data: Any) -> dict[str, Any]:
    step = FinetuneStep.model_validate(
        {"step": "finetune", "epochs": 12, "learning_rate": 2e-2, "batch_size": 32, "loss": loss}
    )
    begun = started(subject, folder, arrays, step, **data)
    return run(subject, step, begun)


@pytest.mark.parametrize("classes_last", [True, False])
def test_tags_are_learnt_and_what_is_ignored_is_not(tmp_path: Path, classes_last: bool) -> None:
    torch.manual_seed(0)
    subject = lifted(Tagger(classes_last), example(), tmp_path)
    x = words()
    y = np.where(np.arange(LENGTH) < 6, x % 3, -100)
    details = tuned(subject, tmp_path, {"words": x, "y": y}, "task", task="tagging")
    assert details["metric"] == "accuracy"
    assert details["metric_before"] < 0.6
    assert details["metric_after"] > 0.9


def test_a_language_model_learns_what_follows_from_its_input_alone(tmp_path: Path) -> None:
    subject = subject_of("tied_language_model")
    x = (np.arange(160)[:, None] % 13 + 3 * np.arange(12)) % 37 + 1  # each token says the next
    details = tuned(subject, tmp_path, {"tokens": x}, "task", task="causal_lm")
    assert details["metric"] == "perplexity"
    assert details["metric_before"] > 20
    assert details["metric_after"] < 3


@pytest.mark.parametrize("task", ["tagging", "causal_lm"])
def test_a_damaged_network_learns_from_the_originals_positions(tmp_path: Path, task: str) -> None:
    torch.manual_seed(0)
    if task == "tagging":
        subject = lifted(Tagger(True), example(), tmp_path)
        arrays = {"words": words(), "y": words() % 3}
    else:
        subject = subject_of("tied_language_model")
        arrays = {"tokens": np.random.default_rng(0).integers(1, 40, (160, 12))}
    damage(subject)
    details = tuned(subject, tmp_path, arrays, "distill", task=task, metric="agreement")
    assert details["metric_after"] >= details["metric_before"]
    losses = [line["val_loss"] for line in details["history"]]
    assert losses[-1] < 0.5 * losses[0]


def test_embeddings_learn_their_neighbours_from_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = lifted(Embedder(), example(), tmp_path)
    x = words()
    y = np.arange(160) % 4
    x[:, :3] = y[:, None] + 1
    details = tuned(subject, tmp_path, {"words": x, "y": y}, "both", task="embedding")
    assert details["metric"] == "recall_at_1"
    assert details["metric_after"] > max(0.9, details["metric_before"])


def test_embeddings_find_their_directions_again_without_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = lifted(Embedder(), example(), tmp_path)
    damage(subject)
    details = tuned(subject, tmp_path, {"words": words()}, None, task="embedding")
    assert (details["metric"], details["loss"]) == ("agreement", "distill")
    assert details["metric_after"] > 0.95 > details["metric_before"]
