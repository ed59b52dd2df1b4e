"""What a submission can be told at once: where it is wrong, and what would be right."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.services.specs import parse_spec
from models.criteria import CRITERIA
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import PRUNE, problem_of

JSON = {"Content-Type": "application/json"}


def test_every_wrong_field_is_pointed_at_with_what_is_allowed(api: Api) -> None:
    spec = {
        "model": "net_x",
        "dataset": 5,
        "steps": [
            {"step": "prune", "criterion": "magnitude", "amount": {"macs": 1.0}, "amonut": 1},
            {"step": "zip"},
            {"step": "finetune", "epochs": 10**9, "distill": {"from": "nowhere"}},
            {"step": "prune"},
        ],
        "seed": 2**63,
        "a/b~c": 1,
        "limits": {"timeout_s": 0},
    }
    problem = problem_of(api.client.post("/jobs", json=spec), 422, "invalid_spec")
    pointed = {error["pointer"]: error for error in problem["errors"]}
    assert set(pointed) == {
        "/dataset",
        "/steps/0/criterion",
        "/steps/0/amount/macs",
        "/steps/0/amonut",
        "/steps/1/step",
        "/steps/2/epochs",
        "/steps/2/distill/from",
        "/steps/3",
        "/seed",
        "/a~1b~0c",
        "/limits/timeout_s",
    }
    assert pointed["/steps/0/criterion"]["allowed"] == list(CRITERIA)
    steps = ["prune", "sparsify", "factorize", "finetune", "quantize", "sensitivity"]
    assert pointed["/steps/1/step"]["allowed"] == steps
    assert pointed["/steps/3"]["message"] == "give amount, here or for some layers"
    assert "/schema/job" in problem["hint"]


@pytest.mark.parametrize("amount", ["-1", "1.0", "1.1", "0", "1e309", '"0.5"', "true", "NaN", "null", "[]"])
def test_an_amount_out_of_bounds_is_refused(api: Api, amount: str) -> None:
    body = json.dumps({"model": "net_x", "steps": [{"step": "prune", "amount": {"macs": "AMOUNT"}}]})
    response = api.client.post("/jobs", content=body.replace('"AMOUNT"', amount), headers=JSON)
    assert response.status_code == 422
    assert response.json()["code"] in ("invalid_spec", "invalid_request")
    assert response.json()["errors"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "Expecting value"),
        (b"[]", "object"),
        (b'"text"', "object"),
        (b"{", "line 1"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": {"b": 1, "b": 1}}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\\ud800"}', "surrogates"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}", "nested"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    ],
)
def test_json_that_parsers_disagree_on_is_refused(api: Api, body: bytes, words: str) -> None:
    problem = problem_of(api.client.post("/jobs", content=body, headers=JSON), 422, "invalid_request")
    assert words in problem["detail"]


def test_a_spec_of_more_than_a_mebibyte_is_too_large(api: Api) -> None:
    body = json.dumps({"model": "net_x", "name": "x" * (1 << 20)})
    problem_of(api.client.post("/jobs", content=body, headers=JSON), 413, "too_large")


def test_a_spec_with_thousands_of_mistakes_is_answered_with_the_first_ones(api: Api) -> None:
    spec = {"model": "net_x", "preset": "half", **{f"field{number}": 0 for number in range(10_000)}}
    problem = problem_of(api.client.post("/jobs", json=spec), 422, "invalid_spec")
    assert len(problem["errors"]) == 50


@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_json_must_be_declared(api: Api, media_type: str) -> None:
    response = api.client.post("/jobs", content=b"{}", headers={"Content-Type": media_type})
    assert "application/json" in problem_of(response, 415, "unsupported_media_type")["detail"]


def test_a_compressed_spec_is_refused(api: Api) -> None:
    response = api.client.post("/jobs", content=b"{}", headers={**JSON, "Content-Encoding": "gzip"})
    problem_of(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("change", "code", "pointer", "words"),
    [
        ({"preset": "enormous"}, "invalid_spec", "/preset", "enormous"),
        ({"steps": [{"step": "quantize"}]}, "invalid_spec", "/steps/0", "calibrate"),
        (
            {"steps": [{**PRUNE, "layers": [{"match": "convx*", "skip": True}]}]},
            "no_layer_matches",
            "/steps/0/layers/0/match",
            "conv1",
        ),
        ({"device": "cuda", "steps": [PRUNE]}, "no_such_device", "/device", "No worker"),
        ({"steps": [PRUNE], "require": {"max_metric_drop": 0.1}}, "invalid_spec", "/require", "validation data"),
    ],
)
def test_what_the_network_rules_out_is_refused_before_anything_is_queued(
    api: Api, change: dict[str, Any], code: str, pointer: str, words: str
) -> None:
    spec = {"model": stories.ready_network(api), **change}
    problem = problem_of(api.client.post("/jobs", json=spec), 422, code)
    [error] = problem["errors"]
    assert error["pointer"] == pointer
    assert words in error["message"]
    assert api.client.get("/jobs").json()["data"] == []


@pytest.mark.parametrize("short", [True, False])
def test_data_that_does_not_fit_is_shown_side_by_side_at_the_field_that_was_written(api: Api, short: bool) -> None:
    network = stories.ready_network(api)
    dataset = stories.upload_dataset(api.client)
    wrong = stories.DATASET.inputs[0].model_copy(update={"shape": [3, 32, 32]})
    stories.inspect_next(api.service.database, stories.DATASET.model_copy(update={"inputs": [wrong]}))
    data = {"dataset": dataset} if short else {"data": {"dataset": dataset}}
    response = api.client.post("/jobs", json={"model": network, "steps": [PRUNE], **data})
    [error] = problem_of(response, 422, "dataset_mismatch")["errors"]
    assert error["pointer"] == ("/dataset" if short else "/data/dataset")
    assert "28" in error["message"]
    assert "32" in error["message"]


def test_a_dataset_that_does_not_exist_is_not_found_at_its_field(api: Api) -> None:
    spec = stories.a_spec(api, data={"dataset": "dat_" + "0" * 26})
    assert problem_of(api.client.post("/jobs", json=spec), 404, "not_found")["errors"][0]["pointer"] == "/data/dataset"
    spec = {"model": "../net", "steps": [PRUNE]}
    assert problem_of(api.client.post("/jobs", json=spec), 404, "not_found")["errors"][0]["pointer"] == "/model"


@pytest.mark.parametrize("pattern", ["weights", {"n_of_m": [2, 4]}, {"block": [2, 4]}])
def test_every_pattern_of_zeros_can_be_asked_for(pattern: Any) -> None:
    step = {"step": "sparsify", "pattern": pattern}
    asked = step if "n_of_m" in pattern else step | {"amount": 0.5}
    spec = parse_spec({"model": "net_x", "steps": [asked]})
    assert spec.model_dump(mode="json")["steps"][0]["pattern"] == pattern
