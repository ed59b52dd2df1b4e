"""What is said about how to read a file: checked at the border, part of what the network is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.checkpoints import checkpoint_keys
from models.messages import NetworkFile
from models.reading import NOTHING_SAID, ReadOptions, parse_input_shape
from models.spec import Spec


def test_a_shape_is_for_the_only_input_or_names_its_own() -> None:
    assert parse_input_shape("1,3,224,224") == (None, (1, 3, 224, 224))
    assert parse_input_shape("input_ids:1,128") == ("input_ids", (1, 128))
    assert parse_input_shape("serving:0:1,128") == ("serving:0", (1, 128))
    assert len(ReadOptions(input_shape=("a:1,2", "b:1,2")).input_shape) == 2


@pytest.mark.parametrize(
    "shapes",
    [("",), ("1,x",), ("x:",), ("1,,2",), ("1,0,2",), ("-1,2",), ("1,2", "1,2"), ("a:1,2", "a:1,3"), ("9" * 9,)],
)
def test_other_texts_are_no_shapes(shapes: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        ReadOptions(input_shape=shapes)


def test_bytes_read_in_another_way_are_another_network() -> None:
    plain, small, large = (ReadOptions(input_shape=shapes) for shapes in ((), ("1,3,32,32",), ("1,3,64,64",)))
    assert plain.identify("a" * 64) == "a" * 64
    digests = {options.identify(sha256) for options in (plain, small, large) for sha256 in ("a" * 64, "b" * 64)}
    assert len(digests) == 6
    assert all(len(digest) == 64 for digest in digests)


NAMED = (
    NOTHING_SAID,
    ReadOptions(arch="timm/resnet18"),
    ReadOptions(arch="timm/resnet34"),
    ReadOptions(arch="timm/resnet18", num_classes=10),
    ReadOptions(arch="timm/resnet18", num_classes=0),
    ReadOptions(arch="timm/resnet18", input_shape=("1,3,64,64",)),
    ReadOptions(arch="transformers"),
    ReadOptions(arch="transformers/BertModel"),
)


def test_weights_under_another_name_are_another_network_with_checkpoints_of_its_own() -> None:
    files = [NetworkFile.model_validate({"path": "x", "sha256": "5" * 64, "read": said}) for said in NAMED]
    spec = Spec.model_validate({"model": "net_x", "steps": [{"step": "prune", "amount": {"macs": 0.5}}]})
    assert len({file.identity() for file in files}) == len(NAMED)
    assert len({checkpoint_keys(file.identity(), None, spec)[0] for file in files}) == len(NAMED)


@pytest.mark.parametrize("said", NAMED)
def test_what_was_said_survives_its_row(said: ReadOptions) -> None:
    assert ReadOptions.model_validate_json(said.model_dump_json()) == said


@pytest.mark.parametrize("arch", [None, "transformers"])
def test_classes_are_for_networks_of_timm(arch: str | None) -> None:
    with pytest.raises(ValidationError, match="`num_classes` is for"):
        ReadOptions(arch=arch, num_classes=10)
