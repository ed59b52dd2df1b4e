"""What native code would read past its end with."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import Failure
from tests.engine.ingest.archives import Archive
from tests.networks import export_pt2, lstm
from worker.engine.ingest.read import read_network


def test_recurrent_weights_of_a_wrong_size_are_refused_before_native_code_sees_them(tmp_path: Path) -> None:
    archive = Archive.of(export_pt2(*lstm(), tmp_path / "lstm.pt2").read_bytes())
    meta = archive.weights["config"]["lstm.weight_hh_l1"]["tensor_meta"]
    assert [size["as_int"] for size in meta["sizes"]] == [128, 32]
    meta["sizes"] = [{"as_int": 8}, {"as_int": 32}]
    with pytest.raises(Failure) as caught:
        read_network(archive.write(tmp_path / "x.pt2"))
    assert "weight 9 has the shape (8, 32), not (128, 32)" in caught.value.message
