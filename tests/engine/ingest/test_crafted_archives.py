from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from models.errors import Failure
from tests.engine.ingest.archives import Small, good_archive, good_file
from tests.engine.ingest.corpus import CORPUS, Crafted, torch_payload
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network


def _file(name: str) -> Crafted:
    return next(crafted for crafted in CORPUS if crafted.name == name)


@pytest.mark.parametrize("crafted", [c for c in CORPUS if c.code is not None], ids=lambda crafted: crafted.name)
def test_a_crafted_file_is_refused_and_nothing_in_it_runs(crafted: Crafted, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = crafted.write(tmp_path / "small.pt2", canary)
    with pytest.raises(Failure) as caught:
        read_network(path)
    assert caught.value.code == crafted.code, caught.value.message
    assert crafted.says in caught.value.message
    assert len(caught.value.message) < 1000
    assert not canary.exists()


@pytest.mark.parametrize("crafted", [c for c in CORPUS if c.code is None], ids=lambda crafted: crafted.name)
def test_a_trap_in_a_readable_file_is_defused(crafted: Crafted, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    subject = lift(read_network(crafted.write(tmp_path / "small.pt2", canary)))
    example = subject.example_inputs(3)
    assert subject.graph(*example).shape == (3, 2)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["pickled_weight", "pickled_constant", "pickled_sample_inputs", "legacy_weights"])
def test_the_canary_is_alive_because_torch_itself_falls_for_it(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = _file(name).write(tmp_path / "small.pt2", canary)
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert canary.exists()


def test_a_payload_makes_the_canary_when_it_is_unpickled(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(torch_payload(tmp_path / "canary"))
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / "canary").exists()


def test_a_good_file_is_read_as_torch_wrote_it_and_when_put_together_again(tmp_path: Path) -> None:
    for path in (good_file(tmp_path / "a.pt2"), good_archive().write(tmp_path / "b.pt2")):
        program = read_network(path)
        assert set(program.parameters) == {name for name, _ in Small().named_parameters()}
        assert program.inputs[0].shape == [None, 3, 8, 8]
        assert program.outputs[0].shape == [None, 2]
        assert program.warnings == ()


def test_names_that_cannot_be_attributes_are_changed_and_the_change_is_told(tmp_path: Path) -> None:
    program = read_network(_file("keyword_in_name").write(tmp_path / "x.pt2", tmp_path / "canary"))
    assert program.renames == {
        "class.forward.weight": "class_.forward_.weight",
        "class.forward.bias": "class_.forward_.bias",
    }
    subject = lift(program)
    assert isinstance(subject.graph.get_submodule("class_.forward_"), torch.nn.Conv2d)
    assert subject.renames == program.renames


def test_weights_that_are_not_finite_are_a_warning(tmp_path: Path) -> None:
    program = read_network(_file("not_finite").write(tmp_path / "x.pt2", tmp_path / "canary"))
    assert [notice.code for notice in program.warnings] == ["nonfinite_weights"]
    assert "fc.bias" in program.warnings[0].message
