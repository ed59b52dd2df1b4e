"""P35: any request at all, drawn from the OpenAPI and from what it forbids: never a 5xx, always as described."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.api import tus
from tests.api.serving import Api
from tests.api.two_tenants import DOCUMENT, OPERATIONS, one_of_everything
from tests.promises.outcome import Outcome
from tests.promises.place import Place

METRICS_TOKEN = "token-of-the-metrics"
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SHORT = 4 * len(OPERATIONS) * len(GenerationMode)
load_all_checks()
schemathesis.serializer.alias(tus.MEDIA_TYPE, "application/octet-stream")
AS_DESCRIBED = CHECKS.get_by_names(
    [
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "response_headers_conformance",
    ]
)


def drawn_requests(place: Place, injections: int) -> Outcome:
    """As many to each operation, right ones and wrong ones; half of them about what is there."""
    outcome = Outcome()
    secrets = [*place.keys("a", "b"), METRICS_TOKEN]
    api = place.served(metrics_token=METRICS_TOKEN)
    with api.with_key(secrets[0]) as mine:
        ids = dict(one_of_everything(api, mine).ids)
        ids["upload_id"] = tus.create(mine, 10).rpartition("/")[2]
    examples = max(1, injections // (len(OPERATIONS) * len(GenerationMode)))
    for path, method in OPERATIONS:
        for mode in GenerationMode:
            try:
                _draw(outcome, api, path, method, mode, examples, secrets, ids)
            except Exception as error:  # hypothesis raises what the smallest example raised, or a group
                outcome.broken.append(f"{method.upper()} {path}, {mode.value}: {_told(error)}")
    return outcome


def _draw(
    outcome: Outcome,
    api: Api,
    path: str,
    method: str,
    mode: GenerationMode,
    examples: int,
    secrets: list[str],
    ids: dict[str, str],
) -> None:
    operation = SCHEMA[path][method.upper()]
    requests = operation.as_strategy(generation_mode=mode)

    @given(case=requests, secret=st.sampled_from(secrets), known=st.booleans())
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any, secret: str, known: bool) -> None:
        if known:
            _lead_to_something(case, ids)
        _without_patience(case)
        with _timed(outcome):
            response = case.call(base_url=api.base_url, headers={"Authorization": f"Bearer {secret}"})
        assert response.status_code < 500 or path == "/readyz", f"{response.status_code} {response.text}"
        assert "Traceback (most recent call last)" not in response.text
        case.validate_response(response, checks=AS_DESCRIBED)

    try:
        ask()
    except Unsatisfiable:
        if operation.body or any(operation.iter_parameters()):
            raise


@contextmanager
def _timed(outcome: Outcome) -> Iterator[None]:
    began = time.monotonic()
    yield
    outcome.seconds.append(time.monotonic() - began)
    outcome.injections += 1


def _told(error: BaseException) -> str:
    parts = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return "; ".join([str(error), *map(_told, parts)])


def _lead_to_something(case: Case[Any], ids: dict[str, str]) -> None:
    """Names of what is there, where random ones lead nowhere."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = ids[name]
    if isinstance(case.body, dict):
        for field, known in (("model", "model_id"), ("dataset", "dataset_id")):
            if field in case.body:
                case.body[field] = ids[known]


def _without_patience(case: Case[Any]) -> None:
    """To wait is allowed, and takes a minute."""
    wait = str((case.query or {}).get("wait", ""))
    if wait.isascii() and wait.isdecimal() and int(wait) <= 60:
        case.query["wait"] = "0"
