"""What a dry run says is left, against networks that were really cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.errors import Failure
from models.foretell import Bounds, cuts_nothing, foretell
from models.spec import PruneStep
from tests.engine.subjects import dataset_for, run_in, subject_of
from worker.engine.graph.cost import macs, parameters
from worker.engine.graph.describe import describe_network
from worker.engine.prune.step import run
from worker.engine.subject import Subject
from worker.engine.train.step import run as finetune

LAYERS: list[dict[str, Any]] = [
    {"match": "*conv1", "amount": {"channels": 0.75}, "minimum": 3},
    {"match": "*conv2", "criterion": "random"},
]
TOGETHER: dict[str, tuple[str, dict[str, Any]]] = {
    "channels": ("resnet18", {"amount": {"channels": 0.3}}),
    "parameters": ("mobilenet_v3", {"amount": {"parameters": 0.4}, "round_to": 4}),
    "macs": ("vit", {"amount": {"macs": 0.5}, "round_to": 2}),
    "bytes": ("bert", {"amount": {"bytes": 0.35}, "round_to": 1}),
    "a target": ("lstm", {"amount": {"target": {"parameters": 20_000}}, "round_to": 1}),
    "layers of their own": ("resnet50", {"amount": {"macs": 0.4}, "layers": LAYERS, "round_to": 2}),
    "layers alone": ("resnet18", {"layers": [{"match": "*conv1", "amount": {"target": {"channels": 8}}}]}),
    "heads": ("vit", {"amount": {"channels": 0.5}, "structure": "heads", "round_to": 1}),
    "columns": ("convnext", {"amount": {"channels": 0.5}, "structure": "columns", "maximum_fraction": 0.4}),
}


def counted(subject: Subject) -> dict[str, int]:
    stored = [*subject.graph.parameters(), *subject.graph.buffers()]
    return {
        "parameters": parameters(subject.graph),
        "macs": sum(macs(subject.graph, subject.example_inputs()).values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored),
    }


def prune(subject: Subject, step: PruneStep, folder: Path) -> None:
    asked = run_in(folder, step, data=dataset_for(subject, folder))
    asked.train = finetune
    run(subject, step, asked)


@pytest.mark.parametrize("case", TOGETHER)
def test_where_every_group_loses_the_same_part_the_sizes_are_foretold_exactly(case: str, tmp_path: Path) -> None:
    name, fields = TOGETHER[case]
    subject = subject_of(name)
    step = PruneStep.model_validate({"step": "prune", "scope": "layer", **fields})
    (left,) = foretell([step], describe_network(subject, "pt2"))
    prune(subject, step, tmp_path)
    assert left.quantities == {quantity: Bounds(count, count) for quantity, count in counted(subject).items()}


def test_rounds_and_a_second_step_are_foretold_as_they_come(tmp_path: Path) -> None:
    subject = subject_of("vgg")
    schedule = {"rounds": 3, "curve": "cubic", "epochs_between": 1}
    first = PruneStep.model_validate(
        {"step": "prune", "scope": "layer", "amount": {"macs": 0.5}, "round_to": 3, "schedule": schedule}
    )
    second = PruneStep.model_validate({"step": "prune", "scope": "layer", "amount": {"channels": 0.5}, "round_to": 1})
    foretold = foretell([first, second], describe_network(subject, "pt2"))
    for step, left in zip((first, second), foretold, strict=True):
        prune(subject, step, tmp_path)
        assert left.quantities == {quantity: Bounds(count, count) for quantity, count in counted(subject).items()}


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("resnet18", {"macs": 0.5}),
        ("densenet", {"percentile": 40}),
        ("vit", {"threshold": 0.9}),
        ("bert", {"bytes": 0.3}),
    ],
)
def test_one_ranking_stays_within_what_is_foretold(name: str, amount: dict[str, Any], tmp_path: Path) -> None:
    subject = subject_of(name)
    step = PruneStep.model_validate(
        {"step": "prune", "amount": amount, "normalize": "mean", "round_to": 1, "maximum_fraction": 0.7}
    )
    (left,) = foretell([step], describe_network(subject, "pt2"))
    before = counted(subject)
    prune(subject, step, tmp_path)
    for quantity, count in counted(subject).items():
        bounds = left.quantities[quantity]
        assert bounds.least <= count <= bounds.most == before[quantity]
        if quantity in left.asked:
            assert abs(count - left.asked[quantity]) <= 0.02 * before[quantity]
    assert set(left.asked) == set(amount) & set(before)


def test_after_one_ranking_the_next_step_is_foretold_within_bounds(tmp_path: Path) -> None:
    subject = subject_of("resnet18")
    first = PruneStep.model_validate({"step": "prune", "amount": {"macs": 0.3}, "round_to": 2})
    second = PruneStep.model_validate(
        {"step": "prune", "layers": [{"match": "*", "amount": {"channels": 0.5}}], "round_to": 1, "scope": "layer"}
    )
    foretold = foretell([first, second], describe_network(subject, "pt2"))
    for step, left in zip((first, second), foretold, strict=True):
        prune(subject, step, tmp_path)
        for quantity, count in counted(subject).items():
            assert left.quantities[quantity].least <= count <= left.quantities[quantity].most
    assert foretold[1].quantities["macs"].most < foretold[0].quantities["macs"].most


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("quantity", ["channels", "parameters", "macs"])
def test_what_is_foretold_to_cut_nothing_cuts_nothing(quantity: str, scope: str, tmp_path: Path) -> None:
    found = {}
    for fraction in (0.0002, 0.002, 0.01, 0.04, 0.3):
        subject = subject_of("resnet18")
        step = PruneStep.model_validate({"step": "prune", "scope": scope, "amount": {quantity: fraction}})
        found[fraction] = cuts_nothing(step, describe_network(subject, "pt2"))
        if found[fraction]:
            with pytest.raises(Failure, match="less than the smallest step of 8 channels"):
                prune(subject, step, tmp_path)
        elif scope == "layer":
            prune(subject, step, tmp_path)
            assert subject.records, "counts decide it"
    assert found[0.0002]
    assert not found[0.3]
