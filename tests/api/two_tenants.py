"""Two tenants, of whom the first has one of everything, and where in the OpenAPI an id can stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from api.app import create_app
from models.settings import Settings
from tests.api import stories, tus
from tests.api.serving import Api

DOCUMENT = create_app(Settings()).openapi()
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
WITH_AN_ID = [(path, method) for path, method in OPERATIONS if "{" in path]
PREFIXES = {"model_id": "net", "dataset_id": "dat", "job_id": "job", "upload_id": "upl"}
"""Parameters of paths that are ids, and how those begin. `name` is that of an artifact, inside a job."""
IDS_IN_QUERIES = {"upload": "upload_id"}


@dataclass(frozen=True)
class Owned:
    """What tenant `a` has; `jobs` by status."""

    ids: Mapping[str, str]
    jobs: Mapping[str, str]

    @property
    def secrets(self) -> list[str]:
        return [*self.ids.values(), *self.jobs.values()]


def one_of_everything(api: Api, mine: httpx.Client) -> Owned:
    jobs = {}
    dataset = stories.ready_dataset(api, mine)
    job = stories.submit(api, mine, dataset=dataset, name="private-name")
    jobs["succeeded"] = job["id"]
    stories.succeed(api, stories.start(api.service.database), {"model.onnx": b"private bytes"})
    jobs["running"] = stories.submit(api, mine)["id"]
    stories.start(api.service.database)
    spec = stories.a_spec(api, mine)
    jobs["queued"] = mine.post("/jobs", json=spec, headers={"Idempotency-Key": "shared"}).json()["id"]
    ids = {
        "model_id": job["resolved_spec"]["model"],
        "dataset_id": dataset,
        "job_id": job["id"],
        "upload_id": tus.sent(mine, b"private"),
        "name": "model.onnx",
    }
    return Owned(ids, jobs)
