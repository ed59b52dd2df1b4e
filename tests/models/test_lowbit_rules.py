"""What a `quantize` step of few bits may be refused for before it runs, and what its defaults become."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models.inspection import NetworkInspection
from models.lowbit_policy import Coding
from models.lowbit_rules import codings_of
from models.rules import check, resolve
from models.spec import Int4Step, Spec, TernaryStep
from tests.models.test_rules import ARRAYS, NO_DATA, RESNET, UNLABELLED, layer, spec

RECURRENT = RESNET.model_copy(update={"layers": [layer("lstm", "LSTM", [128, 6], None)]})


def few(scheme: str = "int4", **fields: Any) -> dict[str, Any]:
    return {"step": "quantize", "scheme": scheme, **fields}


SPARSE = {"step": "sparsify", "amount": 0.5}
REFUSED: dict[str, tuple[Spec, NetworkInspection, str, str]] = {
    "no layer that can": (
        spec([few()]),
        RECURRENT,
        "/steps/0",
        "No weight of this network can be stored in few bits: no convolution, linear layer or embedding.",
    ),
    "every layer skipped": (
        spec([few(layers=[{"match": "*", "skip": True}])]),
        RESNET,
        "/steps/0/layers",
        "Every layer is skipped or kept, so nothing would be quantized: skip fewer.",
    ),
    "a glob that matches nothing": (
        spec([few(layers=[{"match": "fd", "skip": True}])]),
        RESNET,
        "/steps/0/layers/0/match",
        "No layer's name matches 'fd'; the nearest",
    ),
    "a glob that matches only what cannot": (
        spec([few(layers=[{"match": "lstm", "bits": 3}])]),
        RESNET.model_copy(update={"layers": [*RESNET.layers, *RECURRENT.layers]}),
        "/steps/0/layers/0/match",
        "'lstm' matches no convolution, linear layer or embedding, and no other is stored so.",
    ),
    "8-bit inputs where no linear layer has them": (
        spec([few(activations="int8", layers=[{"match": "fc", "bits": 3}])]),
        RESNET,
        "/steps/0/activations",
        "No linear layer of this network would have 8-bit inputs: leave `activations` out.",
    ),
    "training without data": (
        spec([few(epochs=2)]),
        RESNET,
        "/steps/0",
        "The `quantize` step needs data to train on; labels are not needed.",
    ),
    "a floor without data": (
        spec([few(floor={"max_metric_drop": 0.01})]),
        RESNET,
        "/steps/0",
        "The `quantize` step needs data to hold its `floor` against; labels are not needed.",
    ),
    "binary after zeros": (
        spec([SPARSE, few("binary")]),
        RESNET,
        "/steps/1",
        "Binary weights have no zero, and `sparsify` has set weights to zero that stay so (layer1.0.conv1): use `int4`",
    ),
    "entries of several weights after zeros": (
        spec([SPARSE, few("codebook", dimension=2)]),
        RESNET,
        "/steps/1",
        "Entries of several weights mix them, and `sparsify`",
    ),
    "twice": (spec([few(), few()]), RESNET, "/steps/1", "`quantize` cannot come after `quantize` (step 0)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_at_submit(name: str) -> None:
    asked, network, pointer, words = REFUSED[name]
    problems = check(asked, network, ARRAYS if asked.data else NO_DATA)
    assert [(problem.pointer, words in problem.message) for problem in problems] == [(pointer, True)], problems


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learning_rate": 0.1}, "`learning_rate` is about training, and `epochs` is 0"),
        ({"layers": [{"match": "a"}]}, "give skip, a scheme, or what is different in it"),
        ({"layers": [{"match": "a", "skip": True, "bits": 2}]}, "a layer that is skipped has no scheme"),
        ({"layers": [{"match": "a", "scheme": "ternary", "bits": 2}]}, "the scheme ternary has no `bits`"),
        ({"layers": [{"match": "a", "dimension": 2}]}, "the scheme int4 has no `dimension`"),
        ({"layers": [{"match": "a", "bits": 8}]}, "the scheme int4 has 2 to 6 bits"),
        ({"epochs": 1, "regularize": {"penalty": "l1", "strength": 1e-4}}, "none follows: leave it out"),
        ({"bits": 1}, "greater than or equal to 2"),
        ({"activations": "int8", "group_size": None}, "need `bits` and a `group_size` that the kernel knows"),
        ({"activations": "int8", "bits": 3}, r"the kernel knows \(2: 32, 64, 128; 4: 16, 32, 64, 128, 256\)"),
    ],
)
def test_what_says_nothing_or_too_much_is_no_spec(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace("`", ".")):
        spec([few(**fields)])


@pytest.mark.parametrize(
    "step", [few(), few("ternary"), few("binary"), few("codebook"), few("int4", bits=2, group_size=None)]
)
def test_nothing_but_the_network_is_needed(step: dict[str, Any]) -> None:
    asked = spec([step])
    assert check(asked, RESNET, NO_DATA) == []
    resolved = resolve(asked, RESNET, NO_DATA)
    assert resolved.export == ["onnx", "pt2", "safetensors"]
    again = Spec.model_validate_json(resolved.model_dump_json())
    assert resolve(again, RESNET, NO_DATA) == again == resolved


def test_the_loss_is_what_the_data_allows() -> None:
    asked = spec([few(epochs=1)], data={})
    for dataset, loss in ((ARRAYS, "both"), (UNLABELLED, "distill")):
        assert check(asked, RESNET, dataset) == []
        (step,) = resolve(asked, RESNET, dataset).steps or []
        assert isinstance(step, Int4Step)
        assert step.loss == loss


def test_the_first_and_the_last_layer_are_stored_in_more_bits_where_few_would_ruin_them() -> None:
    ternary = TernaryStep(step="quantize", scheme="ternary")
    codings = codings_of(ternary, RESNET)
    assert {name: coding.scheme for name, coding in codings.items()} == {
        "conv1": "integers",
        "layer1.0.conv1": "ternary",
        "layer1.0.conv2": "ternary",
        "fc": "integers",
    }
    assert codings["fc"].bits == 8
    floats = ternary.model_copy(update={"first_and_last": "float"})
    assert set(codings_of(floats, RESNET)) == {"layer1.0.conv1", "layer1.0.conv2"}


def test_layers_may_have_a_scheme_of_their_own() -> None:
    (step,) = spec([few(layers=[{"match": "fc", "bits": 2}, {"match": "*conv1", "scheme": "codebook"}])]).steps or []
    assert isinstance(step, Int4Step)
    codings = codings_of(step, RESNET)
    assert codings["fc"] == Coding("integers", bits=2, group_size=64, range="mse")
    assert codings["conv1"] == Coding("codebook", bits=4)
    assert codings["layer1.0.conv2"] == Coding("integers", bits=4, group_size=64, range="mse")
