"""Data sets: rows 78 to 88."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from models.errors import Code
from models.spec import Spec as JobSpec
from tests.api.stories import a_zip, problem_of
from tests.bad_inputs.place import Place
from tests.bad_inputs.rows import Check, File, Row, row
from tests.bad_inputs.specs import DATA, PRUNE, network, npz
from tests.engine.data.test_hostile_files import END, HDF5, TARS, entry
from tests.engine.data.test_images import BAD, good
from tests.engine.ingest.corpus import payload
from worker.engine.data.dataset import open_dataset

FINETUNE = {"step": "finetune", "epochs": 1}


def data(content: Any, code: Code | None, says: str = "", *, at_once: bool = False, warning: str | None = None) -> File:
    return File(content, code, says, at_once=at_once, warning=warning, kind="/datasets")


def tar(name: str, code: Code = Code.BAD_ARCHIVE) -> File:
    """A file of `tests/engine/data/test_hostile_files.py`, as is `hdf5`."""
    content, says = TARS[name]
    return data(content, code, says)


def hdf5(name: str, code: Code = Code.DATASET_BAD) -> File:
    make, says = HDF5[name]
    return data(lambda canary: make(canary.parent).read_bytes(), code, says)


def objects(canary: Path) -> bytes:
    """An array of objects: a header, and the pickle that numpy would read behind it."""
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return buffer.getvalue() + payload(canary)


def claims_terabytes() -> bytes:
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 1_000_000)})
    return buffer.getvalue() + bytes(64)


def compressed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def many_members() -> bytes:
    """Every header is looked at, and none is extracted."""
    return b"".join(entry(f"a/{number}.png") for number in range(10_000)) + END


def pictures(bad: dict[str, bytes]) -> bytes:
    return a_zip(good() | bad)


def job(
    arrays: Mapping[str, Any], pointer: str, *says: str, code: str = "invalid_spec", task: str | None = None
) -> Check:
    """Data that is fine by itself, and a job for which it is not."""

    def check(place: Place) -> None:
        dataset = place.ready("/datasets", npz(**arrays))
        fields = {"dataset": dataset, **({"task": task} if task else {})}
        refused = place.client.post("/jobs", json={"model": network(place), "data": fields, "steps": [PRUNE, FINETUNE]})
        errors = {error["pointer"]: error["message"] for error in problem_of(refused, 422, code)["errors"]}
        assert all(part in errors[pointer] for part in says), errors

    return check


def fewer_samples_than_a_batch(place: Place) -> None:
    content = npz(x=DATA["x"][:5], y=DATA["y"][:5])
    dataset = place.ready("/datasets", content)
    spec = {"model": network(place), "dataset": dataset, "steps": [FINETUNE | {"batch_size": 64}]}
    submitted = place.client.post("/jobs", json=spec)
    assert submitted.status_code == 202, submitted.text
    (place.folder / "few").write_bytes(content)
    resolved = JobSpec.model_validate(submitted.json()["resolved_spec"])
    assert resolved.data is not None
    model = place.client.get(f"/models/{spec['model']}").json()
    opened = open_dataset(place.folder / "few", resolved.data, _tensors(model), seed=0)
    assert [len(batch) for batch in opened.train.batches(64)] == [3]


def _tensors(model: dict[str, Any]) -> Any:
    from models.inspection import TensorInfo

    return tuple(TensorInfo(**info) for info in model["inputs"])


ONES = np.ones(20, np.int64)
ROWS: tuple[Row, ...] = (
    row(
        78,
        "array of objects",
        data(objects, Code.DATASET_BAD, "pickle"),
        data(lambda canary: a_zip({"x.npy": objects(canary)}), Code.DATASET_BAD, "pickle"),
        data(lambda canary: payload(canary), Code.UNSAFE_PICKLE, at_once=True),
        data(pickle.dumps({"x": 1}), Code.UNSAFE_PICKLE, at_once=True),
    ),
    row(
        79,
        "header that claims terabytes",
        data(claims_terabytes(), Code.DATASET_BAD, "claims 4000000000000 bytes of data and has 64"),
        data(a_zip({"x.npy": claims_terabytes()}), Code.DATASET_BAD, "claims 4000000000000 bytes"),
    ),
    row(
        80,
        "compression bomb",
        data(lambda _: compressed(x=np.zeros((40, 1 << 20), np.uint8)), Code.DATASET_BAD, "more than 20"),
        hdf5("bomb"),
        hdf5("zeros"),
    ),
    row(
        81,
        "HDF5 that reaches into other files",
        hdf5("external_link"),
        hdf5("external_storage"),
        hdf5("virtual"),
        hdf5("soft_link"),
    ),
    row(
        82,
        "tar that leads outside",
        *(tar(name) for name in ("up", "absolute", "windows", "long_up", "link", "hard_link", "device", "pipe")),
        *(tar(name) for name in ("sparse", "pax_sparse", "huge_name", "bad_pax")),
        data(lambda _: many_members(), Code.DATASET_BAD, "10000 of 10000"),
    ),
    row(
        83,
        "image of 64 megapixels in a few kilobytes",
        data(
            lambda _: pictures({"one/bad.png": BAD["huge"][0]()}),
            None,
            "1 skipped; the first",
            warning="images_skipped",
        ),
        data(
            lambda _: pictures({"one/bad.png": BAD["far_too_huge"][0]()}),
            None,
            "1 skipped; the first",
            warning="images_skipped",
        ),
    ),
    row(
        84,
        "images that cannot be used",
        *(
            data(
                lambda _, kind=kind: pictures({"one/bad.png": BAD[kind][0]()}),
                None,
                "1 skipped; the first",
                warning="images_skipped",
            )
            for kind in ("truncated", "animated", "cmyk", "sixteen_bit", "empty", "zero_size")
        ),
        data(
            lambda _: pictures({f"one/bad{number}.png": b"bad" for number in range(3)}),
            Code.DATASET_BAD,
            "3 of 43 images cannot be used",
        ),
    ),
    row(
        85,
        "labels that teach nothing",
        job({**DATA, "y": np.arange(20) % 5}, "/data/dataset", "up to number 4", "for 2", code="dataset_mismatch"),
        job({**DATA, "y": ONES}, "/data/task", "one class", task="classification"),
        data(npz(x=DATA["x"], y=ONES), None, warning="one_class_only"),
        data(npz(x=DATA["x"][:0], y=ONES[:0]), Code.DATASET_BAD),
        job({**DATA, "split": np.array(["val"] * 20)}, "/data/dataset", "no 'train' samples", code="dataset_mismatch"),
        job({"x": DATA["x"][:2]}, "/data/dataset", "at least 3", code="dataset_mismatch"),
    ),
    row(
        86,
        "data of another shape or type",
        job(
            {"x": np.zeros((20, 3, 9, 9), np.float32)},
            "/data/dataset",
            "[N, 3, 8, 8]",
            "[N, 3, 9, 9]",
            code="dataset_mismatch",
        ),
        job({"x": np.zeros((20, 8, 8, 3), np.float32)}, "/data/dataset", "moveaxis", code="dataset_mismatch"),
    ),
    row(87, "fewer samples than a batch", fewer_samples_than_a_batch),
    row(
        88,
        "NaN among the samples",
        data(
            npz(x=np.where(np.arange(20)[:, None] == 13, np.nan, np.ones((20, 4))), y=DATA["y"]),
            Code.DATASET_BAD,
            "NaN in sample 13",
        ),
    ),
)
"""Row 85: with one class a network can still be distilled and calibrated, so such data is accepted with a warning, and
refused where a task needs more."""
