"""Good documents with something random changed: whatever comes out, it is a network that runs or one `Failure`."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.errors import Failure
from tests.engine.ingest.archives import Archive, good_archive
from tests.networks import export_pt2, lstm
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network

Way = tuple[str | int, ...]

SURPRISES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 2**40, 2**63 - 1, 1.5, "", "image", "relu_", [], {}, [1, 2]),
    "torch.ops.aten.linear.default",
    {"as_int": 3},
    {"as_none": True},
    {"as_tensor": {"name": "conv2d"}},
    {"as_tensor": None},
    {"as_ints": [1, 1]},
)


def _ways(value: object, way: Way = ()) -> Iterator[Way]:
    if way:
        yield way
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if key != "metadata":
            yield from _ways(item, (*way, key))


def _at(value: Any, way: Way) -> Any:
    for key in way:
        value = value[key]
    return value


def _mutate(archive: Archive, generator: random.Random) -> Way:
    documents = (archive.program["graph_module"], archive.program["graph_module"], archive.weights, archive.constants)
    document = generator.choice(documents)
    ways = list(_ways(document))
    *path, last = way = generator.choice(ways)
    parent = _at(document, tuple(path))
    choice = generator.random()
    if choice < 0.2:
        del parent[last]
    else:
        other = _at(document, generator.choice(ways)) if choice < 0.4 else generator.choice(SURPRISES)
        parent[last] = copy.deepcopy(other)
    return way


def test_a_document_with_random_changes_is_read_or_refused_with_a_code(tmp_path: Path) -> None:
    refused = 0
    for seed in range(150):
        archive = good_archive()
        _mutate(archive, random.Random(seed))
        try:
            subject = lift(read_network(archive.write(tmp_path / "x.pt2")))
        except Failure:
            refused += 1
            continue
        subject.graph(*subject.example_inputs(2))
    assert 50 < refused < 150


def test_recurrent_weights_of_a_wrong_size_are_refused_before_native_code_sees_them(tmp_path: Path) -> None:
    archive = Archive.of(export_pt2(*lstm(), tmp_path / "lstm.pt2").read_bytes())
    meta = archive.weights["config"]["lstm.weight_hh_l1"]["tensor_meta"]
    assert [size["as_int"] for size in meta["sizes"]] == [128, 32]
    meta["sizes"] = [{"as_int": 8}, {"as_int": 32}]
    with pytest.raises(Failure) as caught:
        read_network(archive.write(tmp_path / "x.pt2"))
    assert "weight 9 has the shape (8, 32), not (128, 32)" in caught.value.message
