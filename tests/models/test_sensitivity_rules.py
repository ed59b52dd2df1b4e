"""What a `sensitivity` step may be refused for before it runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.inspection import DatasetInspection, NetworkInspection
from models.rules import check, resolve
from models.spec import Spec
from tests.models.test_rules import ARRAYS, DECIDED, FROZEN, NORMALISED, RESNET

TRY = {"step": "sensitivity"}
PRUNE = {"step": "prune", "amount": {"macs": 0.5}}
SKIP_ALL = [{"match": "*", "skip": True}]


def spec(*steps: dict[str, Any], **fields: Any) -> Spec:
    return Spec.model_validate({"model": "net_1", "dataset": "dat_1", "steps": list(steps)} | fields)


REFUSED: dict[str, tuple[Spec, NetworkInspection, str, str]] = {
    "nothing to remove": (spec(TRY), FROZEN, "/steps/0", "No channels of this network can be removed"),
    "all skipped": (spec({**TRY, "layers": SKIP_ALL}), RESNET, "/steps/0", "skip fewer"),
    "a glob of nothing": (
        spec({**TRY, "layers": [{"match": "layr1*", "skip": True}]}),
        RESNET,
        "/steps/0/layers/0/match",
        "No layer's name matches 'layr1*'; the nearest are",
    ),
    "no BatchNorm": (spec({**TRY, "criterion": "bn_gamma"}), RESNET, "/steps/0/criterion", "no group that may shrink"),
    "no gradients": (spec({**TRY, "criterion": "taylor"}), DECIDED, "/steps/0/criterion", "floating-point"),
    "samples that nothing reads": (spec({**TRY, "samples": 64}), RESNET, "/steps/0/samples", "leave `samples` out"),
    "a file of nothing": (spec(TRY, export=["onnx"]), RESNET, "/export", "leave `export` out, or add a step"),
    "a floor under nothing": (
        spec(TRY, require={"max_metric_drop": 0.1}),
        RESNET,
        "/require",
        "leave `require` out, or add a step",
    ),
    "no file of something": (spec(TRY, PRUNE, export=[]), RESNET, "/export", "Name at least one format"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_the_remedy(case: str) -> None:
    asked, network, pointer, words = REFUSED[case]
    found = {problem.pointer: problem.message for problem in check(asked, network, ARRAYS)}
    assert words in found[pointer]


def test_it_needs_data_to_measure_on() -> None:
    asked = Spec.model_validate({"model": "net_1", "steps": [TRY]})
    (problem,) = check(asked, RESNET, None)
    assert problem.message.startswith("The `sensitivity` step needs data to measure on; labels are not needed.")


@pytest.mark.parametrize(
    ("asked", "network", "files"),
    [
        (spec(TRY), RESNET, []),
        (spec({**TRY, "criterion": "bn_gamma"}), NORMALISED, []),
        (spec(TRY, export=[]), RESNET, []),
        (spec(TRY, PRUNE, TRY), RESNET, ["onnx", "pt2"]),
        (spec(PRUNE, TRY, export=["pt2"]), RESNET, ["pt2"]),
    ],
)
def test_files_are_written_where_something_changes(asked: Spec, network: NetworkInspection, files: list[str]) -> None:
    data: DatasetInspection = ARRAYS
    assert check(asked, network, data) == []
    resolved = resolve(asked, network, data)
    assert resolved.export == files
    assert check(resolved, network, data) == []
    assert resolve(resolved, network, data) == resolved


@pytest.mark.parametrize("amounts", [[], [0.5, 0.25], [0.5, 0.5], [1.0], [0.0]])
def test_amounts_rise_between_none_and_all(amounts: list[float]) -> None:
    with pytest.raises(ValidationError):
        spec({**TRY, "amounts": amounts})
