"""A data set fits the network and the task, or says what does not, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.errors import Code, Failure
from models.inspection import TensorInfo
from models.spec import Data
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.data.inspect import inspect_dataset
from worker.engine.data.labels import IGNORE_INDEX

FLAT = TensorInfo(name="features", dtype="float32", shape=[None, 4])
TOKENS = TensorInfo(name="tokens", dtype="int64", shape=[None, 6])
IMAGE = TensorInfo(name="image", dtype="float32", shape=[None, 3, None, None])
RANDOM = np.random.default_rng(0)
Array = np.ndarray[Any, np.dtype[Any]]


def numbers(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def classes(samples: int = 20) -> Array:
    return np.arange(samples) % 4


def opened(path: Path, arrays: dict[str, Array], *inputs: TensorInfo, **data: Any) -> Dataset:
    np.savez(path / "data.npz", **arrays)  # type: ignore[arg-type]
    return open_dataset(path / "data.npz", Data.model_validate({"dataset": "d"} | data), inputs or (FLAT,), seed=0)


def refused(path: Path, arrays: dict[str, Array], *inputs: TensorInfo, **data: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        opened(path, arrays, *inputs, **data)
    return caught.value


@pytest.mark.parametrize("name", ["features", "x", "x0"])
def test_the_only_input_may_have_three_names(tmp_path: Path, name: str) -> None:
    x = numbers(20, 4)
    dataset = opened(tmp_path, {name: x, "y": classes()})
    assert (dataset.task, dataset.metric, dataset.class_count) == ("classification", "accuracy", 4)
    np.testing.assert_array_equal(dataset.train.samples.read(np.arange(20))[0].numpy(), x)


@pytest.mark.parametrize("names", [("features", "tokens"), ("x0", "x1")])
def test_several_inputs_come_in_call_order(tmp_path: Path, names: tuple[str, str]) -> None:
    arrays = {names[1]: RANDOM.integers(0, 9, (20, 6), dtype=np.int32), names[0]: numbers(20, 4)}
    batch = opened(tmp_path, arrays, FLAT, TOKENS).val.sample(2, 0)
    assert [(value.dtype, value.shape[1]) for value in batch.inputs] == [(torch.float32, 4), (torch.int64, 6)]


def test_other_names_are_shown_beside_the_inputs(tmp_path: Path) -> None:
    failure = refused(tmp_path, {"a": numbers(20, 4), "b": numbers(20, 6)}, FLAT, TOKENS)
    assert failure.code is Code.DATASET_MISMATCH
    assert "'features', 'tokens'" in failure.message
    assert "'a', 'b'" in failure.message


def test_another_shape_is_shown_beside_the_input(tmp_path: Path) -> None:
    failure = refused(tmp_path, {"x": numbers(20, 5)})
    assert failure.code is Code.DATASET_MISMATCH
    assert "float32 [N, 4]" in failure.message
    assert "float32 [N, 5]" in failure.message


def test_channels_last_gets_a_hint(tmp_path: Path) -> None:
    assert "np.moveaxis" in refused(tmp_path, {"x": numbers(20, 8, 8, 3)}, IMAGE).message


def test_floats_do_not_feed_an_integer_input(tmp_path: Path) -> None:
    failure = refused(tmp_path, {"x": numbers(20, 6)}, TOKENS)
    assert "int64 [N, 6]" in failure.message
    assert "float32 [N, 6]" in failure.message


def test_bytes_are_scaled_and_normalised_per_channel(tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    dataset = opened(tmp_path, {"x": x}, IMAGE, transform={"mean": mean, "std": std})
    expected = (x / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(dataset.train.samples.read(np.arange(20))[0].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", ">f4", "int16", "uint16", "bool", "float16"])
def test_any_number_feeds_a_float_input_unscaled(tmp_path: Path, dtype: str) -> None:
    x = RANDOM.integers(0, 2, (20, 4)).astype(dtype)
    read = opened(tmp_path, {"x": x}).train.samples.read(np.arange(20))[0]
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read.numpy(), x.astype(np.float32))


def test_a_scale_is_used_instead_of_the_default(tmp_path: Path) -> None:
    x = np.full((20, 4), 100, dtype=np.uint8)
    assert opened(tmp_path, {"x": x}, transform={"scale": 0.5}).val.sample(1, 0).inputs[0].eq(50).all()


def test_a_mean_of_another_length_is_refused(tmp_path: Path) -> None:
    failure = refused(tmp_path, {"x": numbers(20, 3, 8, 8)}, IMAGE, transform={"mean": [0.5, 0.5]})
    assert failure.where == "/data/transform/mean"


def test_resize_is_for_images_only(tmp_path: Path) -> None:
    assert "image files" in refused(tmp_path, {"x": numbers(20, 3, 8, 8)}, IMAGE, transform={"resize": 8}).message


def test_the_first_nan_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.data.samples.BLOCK_BYTES", 64)
    x = numbers(20, 4)
    x[[13, 17], 2] = np.nan
    failure = refused(tmp_path, {"x": x})
    assert (failure.code, failure.where) == (Code.DATASET_BAD, "x[13]")
    with pytest.raises(Failure, match="NaN in sample 13"):
        inspect_dataset(tmp_path / "data.npz")


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    failure = refused(tmp_path, {"x": numbers(20, 4), "y": classes(19)})
    assert "'x' 20, 'y' 19" in failure.message
    with pytest.raises(Failure, match="'x' 20, 'y' 19"):
        inspect_dataset(tmp_path / "data.npz")


def test_every_sample_comes_once_and_the_last_batch_is_kept(tmp_path: Path) -> None:
    x = np.arange(80, dtype=np.float32).reshape(20, 4)
    train = opened(tmp_path, {"x": x, "y": classes()}).train
    assert len(train) == 16
    for generator in (None, torch.Generator().manual_seed(1)):
        batches = list(train.batches(5, generator=generator))
        assert [len(batch) for batch in batches] == [5, 5, 5, 1]
        first = torch.cat([batch.inputs[0][:, 0] for batch in batches])
        labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
        assert sorted((first / 4).int().tolist()) == train.rows.tolist()
        assert torch.equal(labels, (first / 4).long() % 4)


def test_fewer_samples_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    assert [len(batch) for batch in opened(tmp_path, {"x": numbers(5, 4)}).train.batches(64)] == [3]


def test_shuffling_follows_the_generator(tmp_path: Path) -> None:
    train = opened(tmp_path, {"x": numbers(40, 4)}).train
    one, two, three = (
        next(train.batches(40, generator=torch.Generator().manual_seed(seed))).inputs[0] for seed in (5, 5, 6)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_a_sample_is_seeded_without_repetition_and_never_larger_than_the_split(tmp_path: Path) -> None:
    train = opened(tmp_path, {"x": numbers(40, 4)}).train
    assert torch.equal(train.sample(8, 3).inputs[0], train.sample(8, 3).inputs[0])
    assert not torch.equal(train.sample(8, 3).inputs[0], train.sample(8, 4).inputs[0])
    everything = train.sample(1000, 0).inputs[0]
    assert len(everything) == len(np.unique(everything.numpy(), axis=0)) == 32


@pytest.mark.parametrize(
    ("labels", "task", "metric", "class_count"),
    [
        (np.arange(20) % 4, "classification", "accuracy", 4),
        ((np.arange(20) % 4)[:, None], "classification", "accuracy", 4),
        (np.arange(20) % 2 == 0, "classification", "accuracy", 2),
        (np.linspace(0, 1, 20), "regression", "mae", None),
        (np.linspace(0, 1, 40).reshape(20, 2), "regression", "mae", None),
        (RANDOM.integers(0, 2, (20, 5)), "multilabel", "micro_f1", 5),
        (np.arange(20 * 6).reshape(20, 2, 3) % 7, "segmentation", "mean_iou", 7),
        (None, "none", "agreement", None),
    ],
)
def test_labels_suggest_the_task(
    tmp_path: Path, labels: Array | None, task: str, metric: str, class_count: int | None
) -> None:
    arrays = {"x": numbers(20, 4)} | ({} if labels is None else {"y": labels})
    dataset = opened(tmp_path, arrays)
    assert (dataset.task, dataset.metric, dataset.class_count) == (task, metric, class_count)
    assert dataset.has_labels == (labels is not None)
    inspected = inspect_dataset(tmp_path / "data.npz").labels
    assert (inspected is None) == (labels is None)


def test_the_task_none_leaves_labels_aside(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"x": numbers(20, 4), "y": classes()}, task="none")
    assert not dataset.has_labels
    assert dataset.train.sample(1, 0).labels is None
    assert dataset.metric == "agreement"


def test_the_void_label_of_a_map_is_ignored(tmp_path: Path) -> None:
    maps = (np.arange(20 * 6).reshape(20, 2, 3) % 3).astype(np.uint8)
    maps[:, 0, 0] = 255
    dataset = opened(tmp_path, {"x": numbers(20, 4), "y": maps}, task="segmentation")
    assert dataset.class_count == 3
    labels = dataset.train.labels()
    assert labels is not None
    assert labels[:, 0, 0].eq(IGNORE_INDEX).all()
    assert labels[:, 0, 1].ge(0).all()


@pytest.mark.parametrize(
    ("labels", "task", "code", "says"),
    [
        (np.zeros(20, dtype=np.int64), None, Code.DATASET_BAD, "one class only"),
        (np.arange(20) % 4 - 1, None, Code.DATASET_BAD, "lowest label is -1"),
        (np.full(20, np.nan), None, Code.DATASET_BAD, "NaN in sample 0"),
        (np.linspace(0, 1, 20), "classification", Code.DATASET_MISMATCH, "one integer a sample"),
        (np.arange(20) % 4, "segmentation", Code.DATASET_MISMATCH, "an integer map"),
        (np.arange(20) % 4, "multilabel", Code.DATASET_MISMATCH, "a row of zeros and ones"),
        (RANDOM.integers(0, 3, (20, 5)), "multilabel", Code.DATASET_BAD, "must be 0 or 1"),
    ],
)
def test_labels_that_do_not_fit_the_task_are_refused(
    tmp_path: Path, labels: Array, task: str | None, code: Code, says: str
) -> None:
    failure = refused(tmp_path, {"x": numbers(20, 4), "y": labels}, task=task)
    assert failure.code is code
    assert says in failure.message


def output(*shape: int | None) -> TensorInfo:
    return TensorInfo(name="logits", dtype="float32", shape=[None, *shape])


def test_more_classes_than_the_output_has_are_refused(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"x": numbers(20, 4), "y": classes()})
    dataset.check_output(output(4))
    dataset.check_output(output(1000))
    with pytest.raises(Failure, match=r"4 classes.*'logits' has 3"):
        dataset.check_output(output(3))


def test_one_output_is_enough_for_two_classes_and_not_for_more(tmp_path: Path) -> None:
    two = opened(tmp_path, {"x": numbers(20, 4), "y": np.arange(20) % 2})
    two.check_output(output(1))
    two.check_output(output())
    with pytest.raises(Failure, match=r"4 classes.*'logits' has 1"):
        opened(tmp_path, {"x": numbers(20, 4), "y": classes()}).check_output(output())


def test_top5_of_four_classes_is_refused(tmp_path: Path) -> None:
    dataset = opened(tmp_path, {"x": numbers(20, 4), "y": classes()}, metric="top5_accuracy")
    with pytest.raises(Failure, match="top5_accuracy"):
        dataset.check_output(output(4))


def test_a_metric_of_another_task_is_refused(tmp_path: Path) -> None:
    failure = refused(tmp_path, {"x": numbers(20, 4), "y": classes()}, metric="rmse")
    assert "choose from accuracy, top5_accuracy, macro_f1, agreement" in failure.message
    assert "without labels" in refused(tmp_path, {"x": numbers(20, 4)}, metric="accuracy").message


def test_a_split_array_decides(tmp_path: Path) -> None:
    split = np.array(["train"] * 10 + ["val"] * 6 + ["test"] * 4)
    arrays = {"x": numbers(20, 4), "y": classes(), "split": split}
    dataset = opened(tmp_path, arrays)
    assert (dataset.train.rows[-1], dataset.val.rows[0], dataset.test.rows[0]) == (9, 10, 16)
    assert not dataset.split_made_here
    inspection = inspect_dataset(tmp_path / "data.npz")
    assert inspection.splits == {"train": 10, "val": 6, "test": 4}
    assert [info.name for info in inspection.inputs] == ["x"]
    assert opened(tmp_path, {"x": arrays["x"]}).split_made_here


def test_an_inspection_shows_samples_inputs_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros((20, 3, 8, 8), dtype=np.uint8), y=classes())
    inspection = inspect_dataset(tmp_path / "data.npz")
    assert (inspection.samples, inspection.splits) == (20, None)
    assert inspection.inputs == [TensorInfo(name="image", dtype="uint8", shape=[3, 8, 8])]
    assert inspection.labels is not None
    labels = inspection.labels
    assert (labels.classes, labels.minimum, labels.maximum, labels.shape) == (4, 0, 3, [])


def test_an_inspection_warns_of_one_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((20, 3)), y=np.zeros(20, dtype=int))
    assert [notice.code for notice in inspect_dataset(tmp_path / "data.npz").warnings] == ["one_class_only"]


def test_labels_alone_are_no_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", y=classes())
    with pytest.raises(Failure, match="no input array"):
        inspect_dataset(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"", Code.EMPTY_FILE, "empty"),
        (b"\x93NUMPY\x01\x00", Code.DATASET_BAD, "header that cannot be read"),
        (b"\x80\x04\x95", Code.UNSAFE_PICKLE, "pickle"),
        (b"\x89HDF\r\n\x1a\n", Code.BAD_ARCHIVE, "HDF5"),
        (b"PAR1", Code.BAD_ARCHIVE, "Parquet"),
        (b"n" * 257 + b"ustar" + bytes(250), Code.BAD_ARCHIVE, "tar archive"),
        (b"a,b\n1,2\n3,4\n5,6\n7,8\n9,10", Code.UNKNOWN_FORMAT, "no known format"),
        (b"PK\x03\x04 and then nothing", Code.BAD_ARCHIVE, "truncated"),
    ],
)
def test_what_is_no_data_is_named(tmp_path: Path, content: bytes, code: Code, says: str) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(Failure) as caught:
        inspect_dataset(tmp_path / "data")
    assert caught.value.code is code
    assert says in caught.value.message


def test_a_network_is_no_data(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "net.pth")
    with pytest.raises(Failure, match="a network saved by PyTorch"):
        inspect_dataset(tmp_path / "net.pth")
