"""The same data in every format, sent to the whole service: inspected, checked against a network, trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploy.temporary import temporary_service
from modelpress import Client, prepare
from modelpress.outcomes import ApiError
from tests.engine.data.forms import ARRAY_FORMS, IMAGE_FORMS, picture

FULL = os.environ.get("MODELPRESS_SWEEPS") == "full"
TRAINED = ("parquet", "webdataset")
"""Trained on in every test run; the others in full sweeps only."""
SAMPLES = 60
LABELS = [row % 3 for row in range(SAMPLES)]
FINETUNE = [{"step": "finetune", "epochs": 1, "batch_size": 8, "learning_rate": 1e-3}]

pytestmark = pytest.mark.slow


class Pictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.enter(x)).mean((2, 3)))
        return scores


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.enter(x)))
        return scores


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with temporary_service(tmp_path_factory.mktemp("data")) as url, Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def rows(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    return client.models.upload(prepare(Rows(), (torch.zeros(2, 12),), tmp_path_factory.mktemp("rows") / "rows.pt2")).id


@pytest.fixture(scope="module")
def pictures(client: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pictures") / "pictures.pt2"
    return client.models.upload(prepare(Pictures(), (torch.zeros(2, 3, 8, 8),), path)).id


def trained_on(client: Client, network: str, dataset: str) -> str:
    """The SHA-256 of what an epoch on it gives."""
    job = client.jobs.create(model=network, dataset=dataset, steps=FINETUNE, export=["onnx"])
    job.wait()
    assert job.status == "succeeded", (job.error, job.log())
    assert job.report()["steps"][0]["details"]["epochs"] == 1
    return next(artifact.sha256 for artifact in job.artifacts() if artifact.name == "model.onnx")


@pytest.fixture(scope="module")
def trained_on_npz(client: Client, rows: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return trained_on(client, rows, uploaded(client, "npz", tmp_path_factory.mktemp("npz")))


def uploaded(client: Client, form: str, folder: Path) -> str:
    generator = np.random.default_rng(0)
    arrays = {
        "x": generator.standard_normal((SAMPLES, 12)).astype(np.float32),
        "y": np.array(LABELS),
        "split": np.array([["train", "train", "val", "test"][row % 4] for row in range(SAMPLES)]),
    }
    dataset = client.datasets.upload(ARRAY_FORMS[form](folder / "data", arrays))
    assert (dataset.format, dataset.samples) == (form.split()[0], SAMPLES)
    assert dataset.splits == {"train": 30, "val": 15, "test": 15}
    assert dataset.labels is not None
    assert dataset.labels["classes"] == 3
    return dataset.id


def pictured(client: Client, form: str, folder: Path) -> str:
    images = [picture(40 + 80 * label) for label in LABELS]
    dataset = client.datasets.upload(IMAGE_FORMS[form](folder / "data", images, LABELS))
    assert dataset.format == ("image_folder" if form.endswith("folders") else form)
    assert dataset.samples == SAMPLES
    assert dataset.image_sizes is not None
    return dataset.id


@pytest.mark.parametrize("form", ARRAY_FORMS)
def test_arrays_in_every_format_are_held_against_the_network(
    form: str, client: Client, pictures: str, tmp_path: Path
) -> None:
    dataset = uploaded(client, form, tmp_path)
    with pytest.raises(ApiError, match=r"\[N, 3, 8, 8\], array 'x' float32 \[N, 12\]"):
        client.jobs.create(model=pictures, dataset=dataset, steps=FINETUNE)


@pytest.mark.parametrize("form", ARRAY_FORMS if FULL else TRAINED)
def test_arrays_in_another_format_train_the_same_network(
    form: str, client: Client, rows: str, trained_on_npz: str, tmp_path: Path
) -> None:
    assert trained_on(client, rows, uploaded(client, form, tmp_path)) == trained_on_npz


@pytest.mark.parametrize("form", IMAGE_FORMS)
def test_images_in_every_format_are_held_against_the_network(
    form: str, client: Client, rows: str, tmp_path: Path
) -> None:
    with pytest.raises(ApiError, match=r"the network takes 'x' float32 \[N, 12\]"):
        client.jobs.create(model=rows, dataset=pictured(client, form, tmp_path), steps=FINETUNE)


@pytest.mark.parametrize("form", IMAGE_FORMS if FULL else TRAINED)
def test_images_in_another_format_are_trained_on(form: str, client: Client, pictures: str, tmp_path: Path) -> None:
    trained_on(client, pictures, pictured(client, form, tmp_path))
