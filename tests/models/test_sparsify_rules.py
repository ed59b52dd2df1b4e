"""What a `sparsify` step may be refused for before it runs."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.inspection import NetworkInspection
from models.rules import check, resolve
from models.spec import SparsifyStep, Spec
from tests.models.test_rules import ARRAYS, NO_DATA, PRUNE, RESNET, TOKENS, UNLABELLED, layer, spec

MIXED = RESNET.model_copy(
    update={
        "layers": [
            layer("embedding", "Embedding", [64, 24], None),
            layer("norm", "LayerNorm", [24], None),
            layer("lstm", "LSTM", [128, 6], None),
            layer("up", "ConvTranspose2d", [10, 16, 2, 2], None),
            layer("fc", "Linear", [5, 7], None),
        ]
    }
)
UNABLE = RESNET.model_copy(update={"layers": MIXED.layers[:2]})


def sparsify(**fields: Any) -> dict[str, Any]:
    return {"step": "sparsify", **fields}


def two_of_four(**fields: Any) -> dict[str, Any]:
    return sparsify(pattern={"n_of_m": [2, 4]}, **fields)


REFUSED: dict[str, tuple[Spec, NetworkInspection, str, str]] = {
    "no layer that can be sparse": (
        spec([sparsify(amount=0.5)]),
        UNABLE,
        "/steps/0",
        "No layer of this network can be sparse: it has no convolution, linear or recurrent layer.",
    ),
    "every layer skipped": (
        spec([sparsify(amount=0.5, layers=[{"match": "*", "skip": True}])]),
        RESNET,
        "/steps/0/layers",
        "Every layer is skipped, so nothing would be set to zero: skip fewer.",
    ),
    "a glob that matches nothing": (
        spec([sparsify(amount=0.5, layers=[{"match": "layer1.0.conv3", "skip": True}])]),
        RESNET,
        "/steps/0/layers/0/match",
        "No layer's name matches 'layer1.0.conv3'; the nearest are layer1.0.conv",
    ),
    "a glob that matches only what cannot be sparse": (
        spec([sparsify(amount=0.5, layers=[{"match": "norm", "amount": 0.9}])]),
        MIXED,
        "/steps/0/layers/0/match",
        "'norm' matches no convolution, linear or recurrent layer, and no other can be sparse.",
    ),
    "a pattern that fits no layer": (
        spec([sparsify(pattern={"n_of_m": [2, 5]})]),
        RESNET,
        "/steps/0/pattern",
        "The pattern fits no layer (conv1 [16, 3, 3, 3], layer1.0.conv1 [32, 16, 3, 3], layer1.0.conv2 "
        "[16, 32, 3, 3]): a layer's inputs must be a multiple of 5. Choose another pattern.",
    ),
    "blocks that fit no layer that is left": (
        spec([sparsify(pattern={"block": [4, 4]}, amount=0.5, layers=[{"match": "l*", "skip": True}])]),
        MIXED,
        "/steps/0/pattern",
        "outputs must be a multiple of 4 and inputs of 4. Choose another pattern.",
    ),
    "less than one weight": (
        spec([sparsify(amount=1e-5)]),
        MIXED,
        "/steps/0/amount",
        "Nothing would be set to zero: 1e-05 of 1443 weights is less than one. Ask for more.",
    ),
    "a pattern, then a cut": (
        spec([two_of_four(), PRUNE]),
        RESNET,
        "/steps/1",
        "A cut moves what is left together and breaks the pattern of step 0 (`sparsify`): put `sparsify` after "
        "`prune`.",
    ),
    "the same again": (
        spec([sparsify(amount=0.7), sparsify(amount=0.6)]),
        RESNET,
        "/steps/1/amount",
        "Step 0 has set as many of the same weights to zero already, and they stay zero: ask for more here, or leave "
        "one of the two out.",
    ),
    "the same pattern again": (
        spec([two_of_four(), two_of_four(criterion="lamp")]),
        RESNET,
        "/steps/1/pattern",
        "Step 0 has set as many of the same weights to zero already",
    ),
    "after quantize": (
        spec([{"step": "quantize"}, two_of_four()], data={}),
        RESNET,
        "/steps/1",
        "`sparsify` cannot come after `quantize` (step 0)",
    ),
    "gradients without data": (
        spec([sparsify(amount=0.5, criterion="taylor")]),
        RESNET,
        "/steps/0/criterion",
        "The criterion 'taylor' needs data to take gradients from",
    ),
    "gradients of one layer without data": (
        spec([sparsify(amount=0.5, layers=[{"match": "fc", "criterion": "hessian"}])]),
        RESNET,
        "/steps/0/layers/0/criterion",
        "The criterion 'hessian' needs data to take gradients from",
    ),
    "rounds without data": (
        spec([sparsify(amount=0.5, schedule={"rounds": 3})]),
        RESNET,
        "/steps/0/schedule",
        "A schedule trains between its rounds and needs data for that",
    ),
    "a loss that is not differentiated": (
        spec([sparsify(amount=0.5, loss="distill")], data={}),
        RESNET,
        "/steps/0/loss",
        "The criterion 'l1' reads no gradients, so no loss is differentiated: leave `loss` out.",
    ),
    "samples that nothing reads": (
        spec([sparsify(amount=0.5, samples=64)], data={}),
        RESNET,
        "/steps/0/samples",
        "The criterion 'l1' reads no gradients, so no samples are taken: leave `samples` out.",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_wrong_is_said_where_it_stands_with_the_remedy(why: str) -> None:
    asked, network, pointer, message = REFUSED[why]
    data = ARRAYS if asked.data is not None else NO_DATA
    (problem,) = [problem for problem in check(asked, network, data) if problem.pointer == pointer]
    assert message in problem.message


@pytest.mark.parametrize(
    ("steps", "network"),
    [
        ([sparsify(amount=0.9)], RESNET),
        ([sparsify(threshold=0.01, criterion="l2")], MIXED),
        ([two_of_four()], MIXED),  # An LSTM has 6 inputs, but 32 hidden ones.
        ([sparsify(pattern={"block": [4, 2]}, amount=0.5)], MIXED),
        ([sparsify(pattern={"block": [2, 5]}, amount=0.5)], MIXED),  # Transposed: 16 outputs, 10 inputs.
        ([PRUNE, two_of_four(), {"step": "finetune"}, {"step": "quantize"}], RESNET),
        ([sparsify(amount=0.5), PRUNE, sparsify(amount=0.5), sparsify(amount=0.8)], RESNET),
        ([sparsify(amount=0.5), sparsify(amount=0.5, criterion="random", scope="layer")], RESNET),
    ],
)
def test_what_can_be_done_passes(steps: list[dict[str, Any]], network: NetworkInspection) -> None:
    with_data = any(step["step"] in ("finetune", "quantize") for step in steps)
    assert check(spec(steps, data={} if with_data else None), network, ARRAYS if with_data else NO_DATA) == []


def test_integers_have_no_gradient_to_go_by() -> None:
    asked = spec([sparsify(amount=0.5, criterion="gradient")], data={"task": "none"})
    network = TOKENS.model_copy(
        update={"outputs": [output.model_copy(update={"dtype": "int64"}) for output in TOKENS.outputs]}
    )
    assert "No output of the network is floating-point" in " ".join(p.message for p in check(asked, network, ARRAYS))


def test_what_is_not_said_is_filled_in_from_the_data() -> None:
    steps = [sparsify(amount=0.5, criterion="taylor", schedule={"rounds": 2}), sparsify(amount=0.6)]
    for data, loss, learnt in ((ARRAYS, "task", "both"), (UNLABELLED, "distill", "distill")):
        resolved = resolve(spec(steps, data={}), RESNET, data)
        first, second = resolved.steps or []
        assert isinstance(first, SparsifyStep)
        assert isinstance(second, SparsifyStep)
        assert first.schedule is not None
        assert (first.loss, first.schedule.loss, second.loss, second.schedule) == (loss, learnt, None, None)
        assert resolve(resolved, RESNET, data) == resolved


def test_a_packed_file_is_among_the_files_unless_others_are_asked_for() -> None:
    steps = [sparsify(amount=0.5)]
    assert resolve(spec(steps), RESNET, None).export == ["onnx", "pt2", "safetensors"]
    assert resolve(spec(steps, export=["onnx"]), RESNET, None).export == ["onnx"]
    assert resolve(spec([PRUNE]), RESNET, None).export == ["onnx", "pt2"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give amount or threshold, here or for some layers"),
        ({"amount": 0.5, "threshold": 0.1}, "give amount or threshold, not both"),
        ({"pattern": {"n_of_m": [2, 4]}, "amount": 0.5}, "n of m says how much goes"),
        ({"pattern": {"n_of_m": [2, 4]}, "layers": [{"match": "fc", "threshold": 1}]}, "n of m says how much goes"),
        ({"pattern": {"n_of_m": [4, 4]}}, "must be smaller than the second"),
        ({"pattern": {"squares": 4}, "amount": 0.5}, 'give "weights", {"n_of_m": [2, 4]} or {"block": [4, 1]}'),
        ({"pattern": "rows", "amount": 0.5}, "Input should be 'weights'"),
        ({"amount": 0.5, "layers": [{"match": "fc"}]}, "give skip, criterion, amount or threshold"),
        ({"amount": 0.5, "layers": [{"match": "fc", "skip": True, "amount": 0.1}]}, "a layer that is skipped has no"),
        ({"amount": 0.5, "layers": [{"match": "fc", "amount": 0.1, "threshold": 1}]}, "not both"),
        ({"pattern": {"n_of_m": [2, 4]}, "schedule": {"rounds": 2}}, "are the same in every round"),
        ({"threshold": 0.1, "schedule": {"rounds": 2}}, "are the same in every round"),
        ({"amount": 0.5, "criterion": "fpgm"}, "Input should be 'random'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_types(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        spec([sparsify(**fields)])
    (error,) = caught.value.errors()
    assert message in error["msg"]
