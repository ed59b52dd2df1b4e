"""Any request at all, drawn from the OpenAPI and from what it forbids: never a 5xx, and always an answer as described.

A few requests of each kind to each operation; thousands with `MODELPRESS_SWEEPS=full` (`make requests`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from api.app import create_app
from api.auth import create_key
from models.database import Database, migrate
from models.settings import Settings
from tests.api import stories, tus
from tests.api.conftest import NOBODY_LISTENS
from tests.api.serving import Api, served

FULL = os.environ.get("MODELPRESS_SWEEPS") == "full"
EXAMPLES = 500 if FULL else 4
METRICS_TOKEN = "token-of-the-metrics"
DOCUMENT = create_app(Settings()).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
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


class Inhabited:
    """A service with two tenants, of whom the first has one of everything."""

    def __init__(self, api: Api, secrets: list[str]) -> None:
        self.api = api
        self.secrets = secrets
        with api.with_key(secrets[0]) as client:
            self._fill(client)

    def _fill(self, client: httpx.Client) -> None:
        dataset = stories.ready_dataset(self.api, client)
        job = stories.submit(self.api, client, dataset=dataset)
        running = stories.start(self.api.service.database)
        stories.succeed(self.api, running, {"model.onnx": b"bytes"})
        self.queued = stories.submit(self.api, client)["id"]
        self.ids = {
            "model_id": job["resolved_spec"]["model"],
            "dataset_id": dataset,
            "job_id": job["id"],
            "name": "model.onnx",
            "upload_id": tus.create(client, 10).rpartition("/")[2],
        }


@pytest.fixture(scope="module")
def inhabited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inhabited]:
    folder: Path = tmp_path_factory.mktemp("service")
    chosen = Settings(
        database_url=f"sqlite:///{folder}/modelpress.sqlite3",
        broker_url=NOBODY_LISTENS,
        blobs=str(folder / "blobs"),
        work=folder / "work",
        metrics_token=METRICS_TOKEN,
        max_requests_per_second=None,
    )
    migrate(chosen.database_url)
    database = Database(chosen.database_url)
    with database.transaction() as session:
        secrets = [create_key(session, tenant, "a key") for tenant in ("a", "b")]
    database.close()
    with served(chosen) as api:
        yield Inhabited(api, [*secrets, METRICS_TOKEN])


def _lead_to_something(case: Case[Any], inhabited: Inhabited) -> None:
    """Names of what is there, where random ones lead nowhere."""
    for name in case.path_parameters or {}:
        case.path_parameters[name] = inhabited.ids[name]
    if isinstance(case.body, dict):
        for field, known in (("model", "model_id"), ("dataset", "dataset_id")):
            if field in case.body:
                case.body[field] = inhabited.ids[known]


def _without_patience(case: Case[Any]) -> None:
    """To wait is allowed, and takes a minute."""
    wait = str((case.query or {}).get("wait", ""))
    if wait.isascii() and wait.isdecimal() and int(wait) <= 60:
        case.query["wait"] = "0"


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: str(mode.value))
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[f"{m.upper()} {p}" for p, m in OPERATIONS])
def test_any_request_is_answered_as_described(
    inhabited: Inhabited, path: str, method: str, mode: GenerationMode
) -> None:
    operation = SCHEMA[path][method.upper()]

    @given(
        case=operation.as_strategy(generation_mode=mode),
        secret=st.sampled_from(inhabited.secrets),
        known=st.booleans(),
    )
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not FULL,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any, secret: str, known: bool) -> None:
        if known:
            _lead_to_something(case, inhabited)
        _without_patience(case)
        response = case.call(base_url=inhabited.api.base_url, headers={"Authorization": f"Bearer {secret}"})
        assert response.status_code < 500 or path == "/readyz"
        case.validate_response(response, checks=AS_DESCRIBED)

    with suppress(Unsatisfiable):  # of an operation without parameters nothing can be wrong
        ask()
