"""Problem documents, request ids, and that nothing ends in a traceback."""

from __future__ import annotations

import logging
import socket
from typing import Annotated, Any, Literal

import httpx
import pytest
from jsonschema import Draft202012Validator
from pydantic import BeforeValidator, Field, ValidationError
from sqlalchemy import text

from api.errors import STATUSES
from api.pointers import field_problems, json_pointer
from models.errors import HINTS, Code
from models.logs import HumanLine
from models.spec_prune import PruneStep
from models.spec_quantize import QuantizeStep, flatten_choices, with_a_scheme
from models.spec_types import Strict
from tests.api import stories
from tests.api.serving import Api
from tests.api.stories import problem_of
from tests.api.test_uploads import soon


def test_every_code_has_a_status_and_a_remedy() -> None:
    assert set(STATUSES) == set(Code) == set(HINTS)
    assert all(400 <= status < 600 for status in STATUSES.values())


def test_unknown_paths_methods_and_parameters_are_problems_too(api: Api) -> None:
    problem_of(api.client.get("/nothing"), 404, "not_found")
    problem_of(api.client.get("/jobs/"), 404, "not_found")
    response = api.client.put("/jobs")
    problem_of(response, 405, "method_not_allowed")
    assert set(response.headers["allow"].split(", ")) <= {"GET", "POST"}
    problem = problem_of(api.client.get("/jobs", params={"limt": 5}), 422, "invalid_request")
    assert problem["errors"][0]["pointer"] == "/query/limt"
    assert problem["errors"][0]["allowed"] == ["after", "limit", "status"]
    problem_of(api.client.post("/models", params={"archive": "x"}, content=b"x"), 422, "invalid_request")
    problem_of(api.client.get("/healthz", params={"x": 1}), 422, "invalid_request")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods_have_a_defined_answer_everywhere(api: Api, method: str) -> None:
    for path in api.client.get("/openapi.json").json()["paths"]:
        expected = (204, 412) if path.startswith("/uploads") else (404, 405)
        assert api.client.request(method, path).status_code in {*expected, 405}


def test_an_answer_is_json_whatever_is_asked_for(api: Api) -> None:
    assert api.client.get("/jobs", headers={"Accept": "text/xml"}).json()["data"] == []
    problem_of(api.client.get("/jobs/x", headers={"Accept": "text/xml"}), 404, "not_found")


def test_a_request_id_is_taken_over_when_it_is_sane_and_made_when_not(api: Api) -> None:
    assert api.client.get("/healthz", headers={"X-Request-Id": "trace-1:a"}).headers["x-request-id"] == "trace-1:a"
    for given in ("a b", "x" * 129, "<script>", ""):
        made = api.client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"]
        assert made != given
        assert len(made) == 16


def test_every_request_is_one_line_in_the_log_without_control_characters(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelpress.access")
    caplog.handler.setFormatter(HumanLine())
    api.client.get("/jobs/a%0d%0ab", headers={"X-Request-Id": "mine"})
    assert soon(lambda: "mine" in caplog.text)  # the line comes after the answer
    [line] = [line for line in caplog.text.splitlines() if line.endswith("request_id=mine")]
    assert "modelpress.access: GET /jobs/a\\r\\nb 404 bytes=" in line


def test_a_mistake_of_ours_is_a_500_with_an_id_that_the_log_knows_and_no_traceback(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(HumanLine())
    with api.service.database.transaction() as session:
        session.execute(text("DROP TABLE events"))
    job_id = "job_" + "0" * 26
    problem_of(api.client.get(f"/jobs/{job_id}/events"), 404, "not_found")
    spec = stories.a_spec(api)
    problem = problem_of(api.client.post("/jobs", json=spec), 500, "internal")
    assert "events" not in problem["detail"]
    assert "Traceback" not in str(problem)
    assert problem["request_id"] in caplog.text
    assert "no such table" in caplog.text
    assert api.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a/../admin\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET @evil HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_malformed_request_is_a_400(api: Api, head: bytes) -> None:
    url = httpx.URL(api.base_url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(head)
        assert connection.recv(65536).split(b" ")[1] == b"400"


def test_a_pointer_names_what_was_sent_and_no_branch_of_a_union() -> None:
    document = {"steps": [{"step": "prune", "amount": {"macs": 2}}], "a/b": {"~": 1}}
    assert json_pointer(("steps", 0, "prune", "amount", "macs"), document) == "/steps/0/amount/macs"
    assert json_pointer(("steps", 0, "prune", "criterion"), document, missing=True) == "/steps/0/criterion"
    assert json_pointer(("steps", 0, "prune"), document) == "/steps/0"
    assert json_pointer(("a/b", "~"), document) == "/a~1b/~0"
    assert json_pointer((), document) == ""


class _Other(Strict):
    step: Literal["quantize"]
    scheme: Literal["one", "two"]
    number: int = 0


class _Steps(Strict):
    """As `models.spec` has it, with one more scheme."""

    steps: list[
        Annotated[
            PruneStep | Annotated[QuantizeStep | _Other, Field(discriminator="scheme"), BeforeValidator(with_a_scheme)],
            Field(discriminator="step", json_schema_extra=flatten_choices),
        ]
    ]


@pytest.mark.parametrize(
    ("fields", "pointer", "allowed"),
    [
        ({"calibration_samples": 0}, "/steps/0/calibration_samples", None),
        ({"scheme": "int8", "number": 1}, "/steps/0/number", None),
        ({"scheme": "two", "number": "x"}, "/steps/0/number", None),
        ({"scheme": "three"}, "/steps/0/scheme", ["int8", "one", "two"]),
        ({"step": "quantise"}, "/steps/0/step", ["prune", "quantize"]),
    ],
)
def test_a_scheme_has_fields_of_its_own(fields: dict[str, Any], pointer: str, allowed: list[str] | None) -> None:
    document = {"steps": [{"step": "quantize"} | fields]}
    with pytest.raises(ValidationError) as caught:
        _Steps.model_validate(document)
    (problem,) = field_problems(caught.value.errors(), document)
    assert (problem.pointer, problem.allowed) == (pointer, allowed)


def test_the_schema_of_steps_is_one_list() -> None:
    schema = _Steps.model_json_schema()
    names = [choice["$ref"].rpartition("/")[2] for choice in schema["properties"]["steps"]["items"]["oneOf"]]
    assert names == ["PruneStep", "QuantizeStep", "_Other"]
    reader = Draft202012Validator(schema)
    for step in ({}, {"scheme": "int8"}, {"scheme": "two", "number": 3}):
        assert reader.is_valid({"steps": [{"step": "quantize"} | step]})
    assert not reader.is_valid({"steps": [{"step": "quantize", "number": 3}]})
