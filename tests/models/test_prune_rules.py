"""Everything a prune step can be refused for before it runs, and what its defaults become."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.inspection import GroupInfo, NetworkInspection
from models.prune_policy import normalization, policy_for, removable_counts
from models.rules import check, resolve
from models.spec import Amount, LayerAmount, PruneChoice, PruneStep, Schedule, Spec
from tests.models.test_rules import ARRAYS, RESNET, UNLABELLED, layer, spec

NETWORK = RESNET.model_copy(
    update={
        "layers": [*RESNET.layers, layer("attn.qkv", "Linear", [48, 16], "g2"), layer("bn", "BatchNorm2d", [16], "g0")],
        "groups": [
            GroupInfo(id="g0", units=16, layers=["conv1", "bn", "layer1.0.conv2"], consumers=["layer1.0.conv1", "fc"]),
            GroupInfo(id="g1", units=32, layers=["layer1.0.conv1"], consumers=["layer1.0.conv2"]),
            GroupInfo(id="g2", units=4, layers=["attn.qkv"], widths=[12], heads=True, consumers=["attn.proj"]),
        ],
    }
)
HEADLESS = NETWORK.model_copy(update={"groups": NETWORK.groups[:2]})
HALF = {"channels": 0.5}


def prune(**settings: Any) -> dict[str, Any]:
    return {"step": "prune", **settings}


REFUSED: dict[str, tuple[dict[str, Any], NetworkInspection, str, str]] = {
    "a schedule without data": (
        prune(amount=HALF, schedule={"rounds": 3}),
        NETWORK,
        "/steps/0/schedule",
        "trains between its rounds and needs data for that; labels are not needed",
    ),
    "heads of a network that has none": (
        prune(amount=HALF, structure="heads"),
        HEADLESS,
        "/steps/0/structure",
        'no attention heads that can be removed: use `"structure": "channels"`',
    ),
    "whole groups of a network without branches": (
        prune(amount=HALF, structure="groups"),
        NETWORK,
        "/steps/0/structure",
        "no branches that could go as a whole",
    ),
    "columns by BatchNorm": (
        prune(amount=HALF, structure="columns", layers=[{"match": "fc", "criterion": "bn_gamma"}]),
        NETWORK,
        "/steps/0/layers/0/criterion",
        "ranked by the weights that read them",
    ),
    "a criterion of one layer that needs data": (
        prune(amount=HALF, layers=[{"match": "conv1", "criterion": "taylor"}]),
        NETWORK,
        "/steps/0/layers/0/criterion",
        "needs data to take gradients from",
    ),
    "a BatchNorm criterion for a layer without one": (
        prune(amount=HALF, layers=[{"match": "layer1.0.conv1", "criterion": "bn_gamma"}]),
        NETWORK,
        "/steps/0/layers/0/criterion",
        "no group that may shrink has one",
    ),
    "a choice behind one that matches the same": (
        prune(
            amount=HALF, layers=[{"match": "layer1.*", "criterion": "l1"}, {"match": "layer1.0.conv1", "skip": True}]
        ),
        NETWORK,
        "/steps/0/layers/1/match",
        "never counts: 'layer1.*' before it matches the same layers, and the first that does counts",
    ),
    "a choice for a layer that is frozen": (
        prune(amount=HALF, layers=[{"match": "fc", "minimum": 4}]),
        NETWORK,
        "/steps/0/layers/0/match",
        "changes nothing: fc makes an output of the network",
    ),
    "a choice for a layer that shrinks with another's": (
        prune(amount=HALF, layers=[{"match": "conv1", "amount": HALF}, {"match": "*conv2", "amount": HALF}]),
        NETWORK,
        "/steps/0/layers/1/match",
        "changes nothing: layer1.0.conv2 shrinks together with conv1, which 'conv1' matches",
    ),
    "a choice of columns for a layer that reads none": (
        prune(amount=HALF, structure="columns", layers=[{"match": "conv1", "minimum": 4}]),
        NETWORK,
        "/steps/0/layers/0/match",
        "changes nothing: no input features of conv1 can be removed",
    ),
    "everything skipped": (
        prune(amount=HALF, layers=[{"match": "*", "skip": True}]),
        NETWORK,
        "/steps/0/layers",
        "Every group of channels has a layer that is skipped",
    ),
    "bounds that let nothing shrink": (
        prune(amount=HALF, round_to=1, minimum=40),
        NETWORK,
        "/steps/0",
        "`round_to`, `minimum` and `maximum_fraction` together let no group shrink",
    ),
    "a layer's target that is no less than there is": (
        prune(layers=[{"match": "conv1", "amount": {"target": {"channels": 16}}}]),
        NETWORK,
        "/steps/0/layers/0/amount/target/channels",
        "no group that this is for has more than 16 channels",
    ),
    "a layer's target below the minimum": (
        prune(minimum=8, layers=[{"match": "conv1", "amount": {"target": {"channels": 4}}}]),
        NETWORK,
        "/steps/0/layers/0/amount/target/channels",
        "`minimum` keeps 8 at least",
    ),
    "a target of multiply-accumulates that is met": (
        prune(amount={"target": {"macs": 9e8}}),
        NETWORK,
        "/steps/0/amount/target/macs",
        "the network has 10,000 macs, which is no more than what is to be left. Lower the target",
    ),
    "a target of channels that is met": (
        prune(amount={"target": {"channels": 52}}),
        NETWORK,
        "/steps/0/amount/target/channels",
        "the network has 52 channels",
    ),
    "less than one channel": (
        prune(amount={"channels": 0.01}, round_to=1),
        NETWORK,
        "/steps/0/amount/channels",
        "0.01 of 52 channels is less than one. Ask for at least 0.019",
    ),
    "less than half of the smallest step": (
        prune(amount={"channels": 0.07}),
        HEADLESS,
        "/steps/0/amount",
        "channels go so many at a time (`round_to` is 8), and none at all come nearest to what is asked for",
    ),
    "less than half of a step in every layer": (
        prune(amount={"channels": 0.08}, scope="layer"),
        HEADLESS,
        "/steps/0/amount",
        "none at all come nearest to what is asked for. Ask for more or lower `round_to`",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_step_that_cannot_work_is_refused_at_the_field_with_the_remedy(name: str) -> None:
    step, network, pointer, words = REFUSED[name]
    problems = {problem.pointer: problem.message for problem in check(spec([step]), network, None)}
    assert pointer in problems, problems
    assert words in problems[pointer]


ALLOWED: dict[str, dict[str, Any]] = {
    "heads": prune(amount=HALF, structure="heads", round_to=1),
    "columns by the layer that reads them": prune(
        structure="columns", layers=[{"match": "fc", "amount": HALF}], round_to=1
    ),
    "bytes, measured later": prune(amount={"target": {"bytes": 10}}),
    "a latency": prune(amount={"target": {"latency_ms": 3.0}}),
    "half of the smallest step": prune(amount={"channels": 0.09}),
    "half of a step in one layer": prune(amount={"channels": 0.09}, scope="layer"),
    "a threshold": prune(amount={"threshold": 0.5}),
    "skipping what is frozen anyway": prune(amount=HALF, layers=[{"match": "fc", "skip": True}]),
    "a special case before the rule": prune(
        amount=HALF, layers=[{"match": "layer1.0.conv1", "skip": True}, {"match": "layer1.*", "criterion": "l1"}]
    ),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_a_step_that_can_work_is_not_refused(name: str) -> None:
    assert check(spec([ALLOWED[name]]), NETWORK, None) == []


def test_whole_groups_may_go_where_there_are_branches() -> None:
    groups = [group.model_copy(update={"whole": group.id == "g1"}) for group in NETWORK.groups]
    network = NETWORK.model_copy(update={"groups": groups})
    layers = [{"match": "layer1.*", "criterion": "l1"}]
    [mixed] = check(spec([prune(amount=HALF, structure="groups", criterion="l2", layers=layers)]), network, None)
    assert (mixed.pointer, "those of several criteria do not compare" in mixed.message) == ("/steps/0/layers", True)
    step = prune(amount=HALF, structure="groups", criterion="l1", layers=layers)
    assert check(spec([step]), network, None) == []
    (resolved,) = resolve(spec([step]), network, None).steps or []
    assert isinstance(resolved, PruneStep)
    assert resolved.normalize == "none"
    assert resolve(spec([resolved.model_dump()]), network, None).steps == [resolved]


def test_sizes_are_not_held_against_a_step_after_another_cut() -> None:
    first, second = prune(amount=HALF), prune(amount={"target": {"macs": 9e8}})
    assert check(spec([first, second]), NETWORK, None) == []


def test_the_training_between_rounds_may_ask_for_labels_only_where_there_are_some() -> None:
    step = prune(amount=HALF, schedule={"rounds": 2, "loss": "task"})
    (problem,) = check(spec([step], data={}), NETWORK, UNLABELLED)
    assert problem.pointer == "/steps/0/schedule/loss"
    assert check(spec([step], data={}), NETWORK, ARRAYS) == []


def test_defaults_are_filled_in_and_filling_twice_changes_nothing() -> None:
    step = prune(
        amount={"channels": 0.5},
        criterion="lamp",
        schedule={"rounds": 2},
        layers=[{"match": "conv1", "criterion": "l1"}, {"match": "fc", "skip": True}],
    )
    once = resolve(spec([step], data={}), NETWORK, ARRAYS)
    assert resolve(once, NETWORK, ARRAYS) == once
    (filled,) = once.steps or []
    assert isinstance(filled, PruneStep)
    assert (filled.normalize, [choice.normalize for choice in filled.layers]) == ("mean", ["mean", None])
    assert filled.schedule is not None
    assert filled.schedule.loss == "both"


@pytest.mark.parametrize(
    ("fields", "normalized"),
    [
        ({}, ("mean", ["mean"])),
        ({"scope": "layer"}, ("none", ["none"])),
        ({"normalize": "none"}, ("none", ["mean"])),
    ],
)
def test_scores_of_several_criteria_in_one_ranking_are_made_comparable(
    fields: dict[str, Any], normalized: tuple[str, list[str]]
) -> None:
    layers = [{"match": "conv1", "criterion": "random"}]
    step = PruneStep.model_validate(prune(amount=HALF, criterion="lamp", layers=layers, **fields))
    assert (normalization(step, None), [normalization(step, choice) for choice in step.layers]) == normalized


def test_scores_of_a_layer_with_an_amount_of_its_own_share_no_ranking() -> None:
    layers = [{"match": "conv1", "criterion": "random", "amount": HALF}]
    step = PruneStep.model_validate(prune(amount=HALF, criterion="lamp", layers=layers))
    assert [normalization(step, None), normalization(step, step.layers[0])] == ["none", "none"]


def test_a_threshold_is_held_against_scores_as_they_are_unless_normalizing_is_asked_for() -> None:
    layers: list[dict[str, Any]] = [
        {"match": "conv1", "amount": {"threshold": 2.0}},
        {"match": "layer1.0.conv1", "amount": {"threshold": 2.0}, "normalize": "max"},
    ]
    (own,) = resolve(spec([prune(amount=HALF, layers=layers)]), NETWORK, None).steps or []
    assert isinstance(own, PruneStep)
    assert (own.normalize, [choice.normalize for choice in own.layers]) == ("mean", ["none", "max"])
    (whole,) = resolve(spec([prune(amount={"threshold": 2.0})]), NETWORK, None).steps or []
    assert isinstance(whole, PruneStep)
    assert whole.normalize == "none"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give amount, here or for some layers"),
        ({"amount": {}}, "give exactly one of channels, parameters, macs, bytes, latency, target, threshold and perc"),
        ({"amount": {"channels": 0.5, "macs": 0.5}}, "give exactly one of"),
        ({"amount": {"target": {"macs": 1e6, "bytes": 1e6}}}, "give exactly one of channels, parameters, macs, bytes"),
        ({"amount": {"percentile": 100}}, "less than 100"),
        ({"amount": {"threshold": 0}}, "greater than 0"),
        ({"amount": HALF, "maximum_fraction": 0}, "greater than 0"),
        ({"amount": HALF, "layers": [{"match": "a"}]}, "give skip, criterion, normalize, amount, minimum"),
        ({"amount": HALF, "layers": [{"match": "a", "skip": True, "minimum": 2}]}, "is skipped has no minimum"),
        ({"amount": HALF, "structure": "groups", "round_to": 4}, "leave minimum, maximum_fraction, round_to and scope"),
        ({"amount": HALF, "structure": "groups", "normalize": "mean"}, "normalised, all groups score alike"),
        (
            {"amount": HALF, "structure": "groups", "layers": [{"match": "a", "minimum": 2}]},
            "layers may be skipped, or",
        ),
        ({"amount": {"percentile": 5}, "structure": "groups", "schedule": {"rounds": 2}}, "amount of groups as a quan"),
        ({"amount": {"threshold": 1.0}, "schedule": {"rounds": 2}}, "a threshold is the same in every round"),
        ({"amount": HALF, "schedule": {"rounds": 1}}, "greater than or equal to 2"),
    ],
)
def test_what_contradicts_itself_is_refused_by_its_type(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as raised:
        PruneStep.model_validate({"step": "prune", **settings})
    assert words in str(raised.value)


def test_every_step_survives_being_written_and_read() -> None:
    step = PruneStep(
        step="prune",
        amount=Amount(percentile=30),
        layers=[PruneChoice(match="a*", amount=LayerAmount(channels=0.5), criterion="l1", maximum_fraction=0.5)],
        schedule=Schedule(rounds=4, curve="linear"),
    )
    asked = Spec(model="net_x", steps=[step])
    assert Spec.model_validate_json(asked.model_dump_json()) == asked


@pytest.mark.parametrize(
    ("units", "widths", "settings", "counts"),
    [
        (10, [1], {"round_to": 1}, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (10, [1], {"round_to": 4}, [0, 2, 6]),
        (16, [1], {"round_to": 8}, [0, 8]),
        (8, [1], {"round_to": 8}, [0]),
        (4, [12], {"round_to": 8}, [0, 2]),
        (10, [1], {"round_to": 1, "minimum": 7}, [0, 1, 2, 3]),
        (10, [1], {"round_to": 1, "maximum_fraction": 0.25}, [0, 1, 2]),
        (10, [1], {"round_to": 4, "minimum": 5}, [0, 2]),
    ],
)
def test_counts_that_may_go_leave_whole_steps_and_keep_the_bounds(
    units: int, widths: list[int], settings: dict[str, Any], counts: list[int]
) -> None:
    step = PruneStep.model_validate({"step": "prune", "amount": HALF, **settings})
    assert removable_counts(units, widths, policy_for(step, ["a"])) == counts


def test_bounds_are_on_what_there_was_at_the_start() -> None:
    step = PruneStep.model_validate({"step": "prune", "amount": HALF, "round_to": 1, "maximum_fraction": 0.5})
    assert removable_counts(7, [1], policy_for(step, ["a"]), units_at_start=10) == [0, 1, 2]
