"""What holds for every format that carries encoded images: pixels, transforms, labels, parts, bad ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.data_rules import check_data
from models.errors import Code, Failure
from models.inspection import NetworkInspection, TensorInfo
from models.spec import Data, Task, Transform
from tests.engine.data.forms import IMAGE_FORMS, picture
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.data.inspect import inspect_dataset
from worker.engine.train.feed import read_ahead

RGB = TensorInfo(name="image", dtype="float32", shape=[None, 3, 8, 8])
LABELS = [index % 2 for index in range(20)]
every_form = pytest.mark.parametrize("form", IMAGE_FORMS)


def opened(path: Path, transform: Transform | None = None, task: Task | None = None) -> Dataset:
    return open_dataset(path, Data(dataset="d", transform=transform or Transform(), task=task), (RGB,), seed=0)


@every_form
def test_images_and_labels_belong_together(tmp_path: Path, form: str) -> None:
    path = IMAGE_FORMS[form](tmp_path / "data", [picture(10 + 100 * label) for label in LABELS], LABELS)
    inspection = inspect_dataset(path)
    assert (inspection.samples, inspection.holds_images) == (20, True)
    assert inspection.format == ("image_folder" if form.endswith("folders") else form)
    assert inspection.labels is not None
    assert inspection.labels.classes == 2
    assert inspection.image_sizes is not None
    assert (inspection.image_sizes.minimum_height, inspection.image_sizes.maximum_width) == (8, 8)
    dataset = opened(path)
    for part in (dataset.train, dataset.val, dataset.test):
        for batch in part.batches(7):
            assert batch.labels is not None
            expected = (10 + 100 * batch.labels) / 255
            torch.testing.assert_close(batch.inputs[0], expected[:, None, None, None].expand(-1, 3, 8, 8))


@every_form
def test_threads_read_what_one_reads(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.data.images.CACHE_BYTES", 0)
    path = IMAGE_FORMS[form](tmp_path / "data", [picture(value) for value in range(200)], LABELS * 10)
    train = opened(path).train
    read = list(read_ahead(train.unread(3), 4))
    assert len(read) == 54
    for batch, expected in zip(read, train.batches(3), strict=True):
        assert torch.equal(batch.inputs[0], expected.inputs[0])
        assert batch.labels is not None
        assert expected.labels is not None
        assert torch.equal(batch.labels, expected.labels)


@every_form
def test_images_without_labels_are_enough_to_distil(tmp_path: Path, form: str) -> None:
    path = IMAGE_FORMS[form](tmp_path / "data", [picture(value) for value in range(20)], None)
    assert inspect_dataset(path).labels is None
    dataset = opened(path)
    assert (dataset.task, dataset.has_labels, dataset.metric) == ("none", False, "agreement")
    seen = [
        set(part.sample(99, 0).inputs[0][:, 0, 0, 0].tolist()) for part in (dataset.train, dataset.val, dataset.test)
    ]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 20


@every_form
def test_the_size_of_images_decides_before_anything_is_queued(tmp_path: Path, form: str) -> None:
    images = [picture(value, (24, 12)) for value in range(20)]
    inspection = inspect_dataset(IMAGE_FORMS[form](tmp_path / "data", images, LABELS))
    outputs = [TensorInfo(name="logits", dtype="float32", shape=[None, 2])]
    network = NetworkInspection(format="pt2", inputs=[RGB], outputs=outputs, parameters=1, macs=1, layers=[], groups=[])
    [problem] = check_data(Data(dataset="d"), network, inspection)
    assert "The images are 12 x 24 pixels, and the network takes 8 x 8" in problem.message
    assert check_data(Data(dataset="d", transform=Transform(resize=8, crop=8)), network, inspection) == []


@every_form
def test_the_transform_is_the_same_in_all(tmp_path: Path, form: str) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (12, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "PNG")
    path = IMAGE_FORMS[form](tmp_path / "data", [buffer.getvalue()] * 20, LABELS)
    transform = Transform(resize=10, crop=8, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 2.0])
    resized = np.asarray(Image.fromarray(wide).resize((20, 10), Image.Resampling.BILINEAR))[1:9, 6:14]
    expected = (resized.transpose(2, 0, 1) / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape(
        [0.5, 0.25, 2.0], (3, 1, 1)
    )
    read = opened(path, transform).train.sample(1, 0).inputs[0][0]
    np.testing.assert_allclose(read.numpy(), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(Failure) as caught:
        opened(path)
    assert caught.value.code is Code.DATASET_MISMATCH
    assert "[3, 12, 24]" in caught.value.message


@every_form
def test_a_bad_image_takes_its_label_with_it(tmp_path: Path, form: str) -> None:
    images = [picture(10 + 100 * (index % 2)) for index in range(40)]
    images[13] = images[13][:-30]
    path = IMAGE_FORMS[form](tmp_path / "data", images, [index % 2 for index in range(40)])
    assert (inspect_dataset(path).samples, inspect_dataset(path).skipped_samples) == (39, 1)
    dataset = opened(path)
    assert dataset.skipped_samples == 1
    for batch in dataset.train.batches(50):
        assert batch.labels is not None
        assert torch.equal(batch.inputs[0][:, 0, 0, 0] > 0.2, batch.labels == 1)


@every_form
def test_one_class_is_told_when_it_is_sent_and_refused_for_a_task(tmp_path: Path, form: str) -> None:
    path = IMAGE_FORMS[form](tmp_path / "data", [picture(value) for value in range(20)], [1] * 20)
    if form.endswith("folders"):
        assert inspect_dataset(path).labels is None  # one folder is no class
        return
    assert "one_class_only" in [notice.code for notice in inspect_dataset(path).warnings]
    with pytest.raises(Failure, match="one class only"):
        opened(path)
    assert not opened(path, task="none").has_labels


@every_form
def test_images_are_read_again_where_memory_is_too_small_for_all(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = IMAGE_FORMS[form](tmp_path / "data", [picture(value) for value in range(20)], None)
    kept = opened(path).train.sample(100, 0)
    monkeypatch.setattr("worker.engine.data.images.CACHE_BYTES", 0)
    assert torch.equal(kept.inputs[0], opened(path).train.sample(100, 0).inputs[0])
