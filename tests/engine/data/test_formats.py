"""What holds for every format of arrays: the same samples, labels and parts come out, and the same refusals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.data_rules import check_data
from models.errors import Code, Failure
from models.inspection import NetworkInspection, TensorInfo
from models.spec import Data
from tests.engine.data.forms import ARRAY_FORMS, Array, write_safetensors
from worker.engine.data.dataset import Dataset, open_dataset
from worker.engine.data.inspect import inspect_dataset

FLAT = TensorInfo(name="features", dtype="float32", shape=[None, 4])
TOKENS = TensorInfo(name="tokens", dtype="int64", shape=[None, 6])
MAPS = TensorInfo(name="maps", dtype="float32", shape=[None, 2, 3, 5])
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(20, 4)).astype(np.float32)
Y = np.arange(20) % 4
SPLIT = np.array(["train"] * 10 + ["val"] * 6 + ["test"] * 4)

every_form = pytest.mark.parametrize("form", ARRAY_FORMS)


def opened(path: Path, *inputs: TensorInfo, **data: Any) -> Dataset:
    return open_dataset(path, Data.model_validate({"dataset": "d"} | data), inputs or (FLAT,), seed=0)


def written(form: str, folder: Path, **arrays: Array) -> Path:
    return ARRAY_FORMS[form](folder / "data", arrays)


@every_form
def test_samples_labels_and_parts_come_back_exactly(tmp_path: Path, form: str) -> None:
    path = written(form, tmp_path, features=X, y=Y, split=SPLIT)
    inspection = inspect_dataset(path)
    assert (inspection.format, inspection.samples) == (form.split()[0], 20)
    assert inspection.inputs == [TensorInfo(name="features", dtype="float32", shape=[4])]
    assert inspection.labels is not None
    assert (inspection.labels.classes, inspection.labels.maximum) == (4, 3)
    assert inspection.splits == {"train": 10, "val": 6, "test": 4}
    dataset = opened(path)
    assert not dataset.split_made_here
    for part, rows in ((dataset.train, range(10)), (dataset.val, range(10, 16)), (dataset.test, range(16, 20))):
        assert part.rows.tolist() == list(rows)
        [batch] = part.batches(100)
        np.testing.assert_array_equal(batch.inputs[0].numpy(), X[list(rows)])
        assert batch.labels is not None
        assert batch.labels.tolist() == Y[list(rows)].tolist()


@every_form
def test_several_inputs_keep_their_shapes_and_kinds(tmp_path: Path, form: str) -> None:
    maps = RANDOM.integers(0, 256, (20, 2, 3, 5), dtype=np.uint8)
    tokens = RANDOM.integers(0, 9, (20, 6), dtype=np.int32)
    path = written(form, tmp_path, x1=tokens, x0=maps)
    whole = "int64" if form == "tfrecord" else None  # which has no other whole numbers
    assert sorted((info.name, info.dtype, info.shape) for info in inspect_dataset(path).inputs) == [
        ("x0", whole or "uint8", [2, 3, 5]),
        ("x1", whole or "int32", [6]),
    ]
    first, second = opened(path, MAPS, TOKENS, transform={"scale": 1 / 255}).train.samples.read(np.arange(20))
    np.testing.assert_allclose(first.numpy(), maps / np.float32(255), rtol=1e-6)
    assert (second.dtype, second.tolist()) == (torch.int64, tokens.tolist())


@every_form
@pytest.mark.parametrize("labels", [None, Y, np.zeros(20, dtype=np.int64)])
def test_labels_are_not_needed_to_distil_and_calibrate(tmp_path: Path, form: str, labels: Array | None) -> None:
    """Without labels, or with such as say nothing, there are three parts and the original to agree with."""
    path = written(form, tmp_path, x=X, **({} if labels is None else {"y": labels}))
    dataset = opened(path, task="none")
    assert (dataset.has_labels, dataset.metric, len(dataset.train)) == (False, "agreement", 16)
    assert dataset.train.sample(8, 0).labels is None


@every_form
@pytest.mark.parametrize("parts", [None, SPLIT, np.where(SPLIT == "test", "val", SPLIT)])
def test_no_sample_of_the_evaluation_is_trained_on(tmp_path: Path, form: str, parts: Array | None) -> None:
    x = np.arange(80, dtype=np.float32).reshape(20, 4)
    path = written(form, tmp_path, x=x, y=Y, **({} if parts is None else {"split": parts}))
    dataset = opened(path)
    seen = {
        name: {value for batch in part.batches(3) for value in batch.inputs[0][:, 0].tolist()}
        for name, part in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }
    assert sorted(value for values in seen.values() for value in values) == x[:, 0].tolist()
    if parts is not None:
        assert seen["train"] == set(x[parts == "train", 0].tolist())


def network(*inputs: TensorInfo) -> NetworkInspection:
    """As much of one as data is checked against."""
    outputs = [TensorInfo(name="logits", dtype="float32", shape=[None, 4])]
    return NetworkInspection(
        format="pt2", inputs=list(inputs), outputs=outputs, parameters=1, macs=1, layers=[], groups=[]
    )


@every_form
def test_what_was_found_at_the_upload_decides_before_anything_is_queued(tmp_path: Path, form: str) -> None:
    inspection = inspect_dataset(written(form, tmp_path, x=X[:, :3], y=Y))
    data = Data(dataset="d")
    assert check_data(data, network(FLAT.model_copy(update={"shape": [None, 3]})), inspection) == []
    [problem] = check_data(data, network(FLAT), inspection)
    assert problem.pointer == "/data/dataset"
    assert "input 'features' float32 [N, 4], array 'x' float32 [N, 3] <- differs" in problem.message
    [problem] = check_data(data, network(FLAT, TOKENS), inspection)
    assert "takes 'features' float32 [N, 4], 'tokens' int64 [N, 6]; the data has 'x' float32 [N, 3]" in problem.message
    [problem] = check_data(
        Data(dataset="d", task="regression"), network(FLAT.model_copy(update={"shape": [None, 3]})), inspection
    )
    assert "shape ['N']" in problem.message


WRONG: dict[str, tuple[dict[str, Array], Code, str]] = {
    "a_nan": ({"x": np.where(np.arange(80).reshape(20, 4) == 54, np.nan, X)}, Code.DATASET_BAD, "NaN in sample 13"),
    "no_input": ({"y": Y}, Code.DATASET_BAD, "no input array"),
    "an_unknown_part": ({"x": X, "split": np.full(20, 7)}, Code.DATASET_BAD, "must say train, val or test"),
}


@every_form
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arrays_are_refused_when_they_are_sent(tmp_path: Path, form: str, what: str) -> None:
    arrays, code, says = WRONG[what]
    with pytest.raises(Failure) as caught:
        inspect_dataset(written(form, tmp_path, **arrays))
    assert caught.value.code is code
    assert says in caught.value.message


@pytest.mark.parametrize("form", ["npz", "safetensors", "hdf5", "hdf5 chunked"])
def test_arrays_of_other_lengths_are_refused_where_they_can_be_written(tmp_path: Path, form: str) -> None:
    with pytest.raises(Failure, match="'y' 19"):
        inspect_dataset(written(form, tmp_path, x=X, y=Y[:19]))


@every_form
@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": X, "y": np.zeros(20, dtype=int)}, "one class only"),
        ({"x": X, "y": Y - 1}, "lowest label is -1"),
        ({"x": X[:, :3]}, "float32 [N, 3]"),
        ({"other": X, "more": X}, "'features'"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(
    tmp_path: Path, form: str, arrays: dict[str, Array], says: str
) -> None:
    with pytest.raises(Failure) as caught:
        opened(written(form, tmp_path, **arrays))
    assert says in caught.value.message


@every_form
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_a_file_cut_short_is_refused(tmp_path: Path, form: str, kept: float) -> None:
    path = written(form, tmp_path, x=RANDOM.normal(size=(200, 20)), y=np.arange(200) % 3)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) + 3])
    with pytest.raises(Failure) as caught:
        inspect_dataset(path)
    assert caught.value.code in (Code.BAD_ARCHIVE, Code.DATASET_BAD)


@every_form
def test_any_change_of_a_byte_is_read_or_refused_and_never_crashes(tmp_path: Path, form: str) -> None:
    path = written(form, tmp_path, x=RANDOM.integers(0, 9, (20, 3)), y=np.arange(20) % 2)
    original = path.read_bytes()
    refused = 0
    for _ in range(120):
        content = bytearray(original)
        for position in RANDOM.integers(0, min(len(content), 2000), 3):
            content[position] = RANDOM.integers(0, 256)
        path.write_bytes(content)
        try:
            inspect_dataset(path)
        except Failure:
            refused += 1
    assert refused > 10


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_a_single_array_is_the_only_input(tmp_path: Path) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(npy(X))
    inspection = inspect_dataset(path)
    assert (inspection.format, inspection.samples, inspection.labels) == ("npy", 20, None)
    dataset = opened(path)
    assert isinstance(dataset.train.samples.arrays[0], np.memmap)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(dataset.train.samples.read(np.arange(20))[0].numpy(), X)
    with pytest.raises(Failure, match=r"'features', 'tokens' and the data has 'x'"):
        opened(path, FLAT, TOKENS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npy(np.array([{}])), "pickle"),
        (npy(X)[:-4], "claims 320 bytes of data and has 316"),
        (npy(X) + b"more", "claims 320 bytes of data and has 324"),
        (npy(X).replace(b"(20, 4)", b"(9**9,)"), "header that cannot be read"),
        (npy(np.array(3.0)), "no samples"),
        (npy(np.array(["a", "b"])), "dtype <U1"),
        (npy(X.astype(np.complex64)), "complex64"),
    ],
)
def test_a_single_array_that_may_not_be_read_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "data.npy"
    path.write_bytes(content)
    with pytest.raises(Failure) as caught:
        inspect_dataset(path)
    assert caught.value.code is Code.DATASET_BAD
    assert says in caught.value.message


def test_bfloat16_comes_in_float32_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    values = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_file({"x": values}, tmp_path / "data")
    for limit in (1 << 20, 0):
        monkeypatch.setattr("worker.engine.data.spool.IN_MEMORY_BYTES", limit)
        monkeypatch.setattr("worker.engine.data.tensors.BLOCK_ELEMENTS", 40)
        read = opened(tmp_path / "data").train.samples.read(np.arange(50))[0]
        assert torch.equal(read, values.float())


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ('{"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}', "has the dtype F8_E4M3"),
        ('{"x": {"dtype": "F32", "shape": [400], "data_offsets": [0, 4]}}', "cannot be read"),
        ('{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "cannot be read"),
        ('{"x": {"dtype": "F32", "shape": [0, 4611686018427387904], "data_offsets": [0, 0]}}', "cannot be read"),
        ('{"x": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', "no samples"),
        ('{"__metadata__": {"a": "b"}}', "cannot be read"),
        ("[" * 4000, "cannot be read"),
    ],
)
def test_a_strange_safetensors_header_is_refused(tmp_path: Path, header: str, says: str) -> None:
    text = header.encode()
    (tmp_path / "data").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(Failure) as caught:
        inspect_dataset(tmp_path / "data")
    assert says in caught.value.message or caught.value.code is Code.UNKNOWN_FORMAT


def test_weights_of_a_network_are_no_data(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "d", {"conv.weight": np.ones((8, 3, 3, 3)), "conv.bias": np.ones(9)})
    with pytest.raises(Failure, match="different numbers of samples"):
        inspect_dataset(path)
