"""What a `factorize` step may be refused for before it runs, and what later steps may name."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.foretell import foretell
from models.inspection import FactorInfo, LayerInfo, NetworkInspection
from models.rules import check, resolve
from models.spec import FactorizeStep, Spec
from tests.models.test_rules import ARRAYS, FINETUNE, NO_DATA, PRUNE, QUANTIZE, RESNET, UNLABELLED, layer, spec


def known(described: LayerInfo) -> LayerInfo:
    outputs, inputs, *kernel = described.shape
    places = 1 if not kernel else 64
    factors = FactorInfo(
        inputs=inputs,
        outputs=outputs,
        kernel=kernel,
        input_positions=places,
        output_positions=places,
        middle_positions=places if len(kernel) == 2 else None,
    )
    return described.model_copy(update={"factors": factors})


NETWORK = RESNET.model_copy(
    update={"layers": [*map(known, RESNET.layers), layer("depthwise", "Conv2d", [16, 1, 3, 3], "g0")]}
)
WHOLE = RESNET.model_copy(update={"layers": [NETWORK.layers[-1]]})


def factorize(**fields: Any) -> dict[str, Any]:
    return {"step": "factorize", **fields}


HALF = factorize(rank={"ratio": 0.25}, round_to=2)
REFUSED: dict[str, tuple[Spec, NetworkInspection, str, str]] = {
    "no layer that can be taken apart": (
        spec([HALF]),
        WHOLE,
        "/steps/0",
        "No layer of this network can be taken apart: it has no linear or convolutional layer whose weight is its own "
        "and whose channels are not in groups.",
    ),
    "a glob that matches nothing": (
        spec([factorize(rank={"count": 4}, layers=[{"match": "layer1.0.conv3", "skip": True}])]),
        NETWORK,
        "/steps/0/layers/0/match",
        "No layer's name matches 'layer1.0.conv3'; the nearest are layer1.0.conv",
    ),
    "a glob that matches only what stays whole": (
        spec([factorize(rank={"count": 4}, layers=[{"match": "depth*", "rank": {"count": 2}}])]),
        NETWORK,
        "/steps/0/layers/0/match",
        "'depth*' matches no layer that can be taken apart: those are linear or convolutional, with a weight of their "
        "own and channels that are not in groups.",
    ),
    "every layer skipped": (
        spec([factorize(rank={"count": 4}, layers=[{"match": "*", "skip": True}])]),
        NETWORK,
        "/steps/0/layers",
        "Every layer that could be taken apart is skipped, or has no rank: skip fewer, or give `rank`.",
    ),
    "ranks that save nothing": (
        spec([factorize(rank={"ratio": 0.9}, layers=[{"match": "*conv*", "skip": True}], round_to=1)]),
        NETWORK,
        "/steps/0",
        "Nothing would get smaller: fc has as many parameters or multiply-accumulates at rank 9 of 10 as whole. Ask "
        "for a lower rank, or lower `round_to`.",
    ),
    "a method that no layer allows": (
        spec([factorize(rank={"count": 2}, method="spatial", layers=[{"match": "[!u]*", "skip": True}])]),
        NETWORK.model_copy(update={"layers": [*NETWORK.layers, known(layer("up", "Conv1d", [16, 16, 3], "g0"))]}),
        "/steps/0",
        "Nothing would get smaller: of up, its kernel has no rows and columns to take apart.",
    ),
    "a target that is reached already": (
        spec([factorize(amount={"target": {"macs": 10_000}}, round_to=1)]),
        NETWORK,
        "/steps/0/amount/target/macs",
        "Nothing would be removed: the network has 10,000 macs, which is no more than what is to be left.",
    ),
    "outputs without data": (
        spec([factorize(rank={"ratio": 0.25}, fit="outputs")]),
        NETWORK,
        "/steps/0/fit",
        "Outputs are fitted on data; labels are not needed.",
    ),
    "after sparsify": (
        spec([{"step": "sparsify", "amount": 0.5}, HALF]),
        NETWORK,
        "/steps/1",
        "`factorize` cannot come after `sparsify` (step 0): what takes a layer's place has none of the zeros that are "
        "to stay. Put `sparsify` after `factorize`.",
    ),
    "after quantize": (
        spec([QUANTIZE, HALF], data={}),
        NETWORK,
        "/steps/1",
        "`factorize` cannot come after `quantize` (step 0)",
    ),
    "a later step that means a layer by the name it had": (
        spec([HALF, {**QUANTIZE, "layers": [{"match": "fc", "skip": True}]}], data={}),
        NETWORK,
        "/steps/1/layers/0/match",
        "Step 0 (`factorize`) puts fc.0, fc.1 … in the place of fc, and 'fc' does not match those: give 'fc*', another "
        "entry for 'fc.*', or skip fc there.",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_wrong_is_said_where_it_stands_with_the_remedy(why: str) -> None:
    asked, network, pointer, message = REFUSED[why]
    data = ARRAYS if asked.data is not None else NO_DATA
    (problem,) = [problem for problem in check(asked, network, data) if problem.pointer == pointer]
    assert message in problem.message


@pytest.mark.parametrize(
    "steps",
    [
        [HALF],
        [factorize(amount={"parameters": 0.2}, round_to=1)],
        [factorize(rank={"vbmf": True}, round_to=1)],
        [PRUNE, HALF, FINETUNE, HALF, {"step": "sparsify", "amount": 0.5}, QUANTIZE],
        [HALF, {**QUANTIZE, "layers": [{"match": "fc*", "skip": True}]}],
        [HALF, {**QUANTIZE, "layers": [{"match": "fc", "skip": True}, {"match": "fc.*", "skip": True}]}],
        [HALF, {**PRUNE, "layers": [{"match": "layer1.0.conv1.0", "criterion": "l1"}]}],
        [{**HALF, "layers": [{"match": "fc", "skip": True}]}, {**QUANTIZE, "layers": [{"match": "fc", "skip": True}]}],
        [HALF, {"step": "sparsify", "amount": 0.5, "layers": [{"match": "conv1.1", "amount": 0.9}]}],
        [factorize(rank={"ratio": 0.25}, fit="outputs", round_to=2)],
    ],
)
def test_what_can_be_done_passes(steps: list[dict[str, Any]]) -> None:
    assert check(spec(steps, data={}), NETWORK, UNLABELLED) == []


def test_names_do_not_multiply_with_every_step() -> None:
    steps = [HALF] * 31 + [{**PRUNE, "layers": [{"match": "nowhere", "skip": True}]}]
    (problem,) = check(spec(steps), NETWORK, NO_DATA)
    assert problem.pointer == "/steps/31/layers/0/match"


def test_the_method_is_filled_in() -> None:
    for fields, method, samples in (({}, "tucker", None), ({"fit": "outputs"}, "channels", 256)):
        (step,) = resolve(spec([factorize(rank={"energy": 0.9}, **fields)], data={}), NETWORK, ARRAYS).steps or []
        assert isinstance(step, FactorizeStep)
        assert (step.method, step.samples) == (method, samples)


def test_a_network_inspected_before_sizes_were_kept_is_not_foretold() -> None:
    assert foretell(spec([HALF]).steps or [], NETWORK) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give rank or amount, or a rank for some layers"),
        ({"rank": {"energy": 0.9}, "amount": {"macs": 0.5}}, "give rank or amount, not both"),
        ({"rank": {}}, "give exactly one of energy, ratio, count and vbmf"),
        ({"rank": {"energy": 0.9, "count": 4}}, "give exactly one of energy, ratio, count and vbmf"),
        ({"amount": {"macs": 0.5, "bytes": 0.5}}, "give exactly one of parameters, macs, bytes and target"),
        ({"amount": {"target": {}}}, "give exactly one of parameters, macs and bytes"),
        ({"rank": {"energy": 1.0}}, "less than 1"),
        ({"rank": {"vbmf": False}}, "Input should be True"),
        ({"rank": {"count": 4}, "layers": [{"match": "fc"}]}, "give skip, method or rank"),
        (
            {"rank": {"count": 4}, "layers": [{"match": "fc", "skip": True, "method": "tucker"}]},
            "that is skipped has no",
        ),
        ({"rank": {"count": 4}, "fit": "outputs", "method": "tucker"}, "fitted by the method `channels` alone"),
        ({"rank": {"vbmf": True}, "fit": "outputs"}, "vbmf is about noise in weights"),
        ({"rank": {"count": 3}, "round_to": 4}, "every rank is a count"),
        ({"rank": {"energy": 0.9}, "method": "cp"}, "cp has no singular values to choose a rank by"),
        ({"amount": {"macs": 0.5}, "method": "cp"}, "give rank as count or ratio"),
        ({"amount": {"macs": 0.5}, "layers": [{"match": "conv", "method": "cp"}]}, "give rank as count or ratio"),
        ({"rank": {"count": 4}, "samples": 8}, "samples are looked at where outputs are fitted alone"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_types(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec([factorize(**fields)])
    (error,) = caught.value.errors()
    assert message in error["msg"]
