"""Presets, schema, capabilities, health, and that the published OpenAPI is true."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from models import workers
from models.database import now
from models.errors import Code
from models.never_exercised import NEVER_EXERCISED
from models.presets import PRESETS
from models.settings import Settings
from models.spec import Spec
from models.tables import Worker
from tests.api import stories
from tests.api.serving import Api
from tests.services import Valkey


def register(api: Api, name: str, device_class: str | None) -> None:
    with api.service.database.transaction() as session:
        moment = now(session)
        workers.register(
            session,
            Worker(
                id=name,
                queue="device.cpu" if device_class else "control",
                device_class=device_class,
                device_set=None,
                slots=1 if device_class else 4,
                memory_bytes=8 << 30,
                versions={"torch": "2.13.0"},
                sandbox="rlimits",
                started_at=moment,
                heartbeat_at=moment,
            ),
        )


def test_presets_are_specs_that_the_schema_accepts(api: Api) -> None:
    listed = api.client.get("/presets").json()["data"]
    assert [preset["name"] for preset in listed] == list(PRESETS)
    schema = Draft202012Validator(api.client.get("/schema/job").json())
    for preset in listed:
        schema.validate({"model": "net_x", "steps": preset["steps"]})
        Spec.model_validate({"model": "net_x", "steps": preset["steps"]})
    assert not schema.is_valid({"model": "net_x", "preset": "half", "unknown": 1})


def test_capabilities_follow_the_spec_and_the_workers_that_are_alive(api: Api) -> None:
    before = api.client.get("/capabilities").json()
    assert before["steps"] == ["prune", "sparsify", "factorize", "finetune", "quantize", "sensitivity"]
    assert {"random", "l2", "taylor", "bn_gamma"} <= set(before["criteria"])
    assert {"random", "l1", "lamp", "hessian"} <= set(before["weight_criteria"])
    assert before["aggregates"] == ["mean", "sum", "max"]
    assert before["normalizations"] == ["mean", "sum", "max", "standard", "none"]
    assert {"macs", "bytes", "latency", "target", "threshold", "percentile"} <= set(before["amounts"])
    assert {"macs", "bytes", "latency_ms"} <= set(before["targets"])
    assert before["curves"] == ["linear", "cubic", "exponential"]
    assert before["structures"] == ["channels", "columns", "heads", "groups"]
    assert before["patterns"] == ["weights", "n_of_m", "block"]
    assert (before["model_formats"], before["dataset_formats"]) == (
        ["pt2", "onnx", "safetensors", "pth", "transformers"],
        ["npz", "npy", "safetensors", "image_folder", "webdataset", "hdf5", "parquet", "tfrecord"],
    )
    assert before["devices"] == []
    assert before["never_exercised"] == list(NEVER_EXERCISED)
    assert [path.split(":")[0] for path in before["never_exercised_here"]] == ["device cpu", "device cuda"]
    register(api, "w1", "cpu")
    register(api, "c1", None)
    after = api.client.get("/capabilities").json()
    [device] = after["devices"]
    assert (device["device"], device["workers"], device["slots"]) == ("cpu", 1, 1)
    assert device["versions"] == {"torch": ["2.13.0"]}
    assert after["sandbox"] == ["rlimits"]
    assert [path.split(":")[0] for path in after["never_exercised_here"]] == ["device cuda"]
    assert after["limits"]["model_bytes"] == api.service.settings.max_model_bytes


def test_a_device_that_is_registered_may_be_asked_for(api: Api) -> None:
    spec = stories.a_spec(api, device="cuda")
    assert api.client.post("/jobs", json=spec).status_code == 422
    register(api, "w1", "cuda")
    assert api.client.post("/jobs", json=spec).status_code == 202


def test_readiness_names_what_does_not_answer(serve: Callable[..., Api], valkey: Valkey) -> None:
    without = serve()
    response = without.client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["status"] == "unavailable"
    assert response.json()["checks"]["database"] == response.json()["checks"]["blobs"] == "ok"
    assert response.json()["checks"]["broker"] != "ok"
    ready = serve(broker_url=valkey.url)
    assert ready.client.get("/readyz").json() == {
        "status": "ok",
        "checks": {"database": "ok", "broker": "ok", "blobs": "ok"},
    }
    assert ready.client.get("/healthz").json() == {"status": "ok"}


@pytest.fixture
def document(api: Api) -> dict[str, Any]:
    published: dict[str, Any] = api.client.get("/openapi.json").json()
    return published


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def test_openapi_has_every_route_of_the_contract_under_a_plain_name(document: dict[str, Any]) -> None:
    names = {
        operation["operationId"]: f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert names == {
        "create_model": "POST /models",
        "list_models": "GET /models",
        "get_model": "GET /models/{model_id}",
        "delete_model": "DELETE /models/{model_id}",
        "create_dataset": "POST /datasets",
        "list_datasets": "GET /datasets",
        "get_dataset": "GET /datasets/{dataset_id}",
        "delete_dataset": "DELETE /datasets/{dataset_id}",
        "discover_uploads": "OPTIONS /uploads",
        "create_upload": "POST /uploads",
        "get_upload_offset": "HEAD /uploads/{upload_id}",
        "append_to_upload": "PATCH /uploads/{upload_id}",
        "delete_upload": "DELETE /uploads/{upload_id}",
        "create_job": "POST /jobs",
        "list_jobs": "GET /jobs",
        "get_job": "GET /jobs/{job_id}",
        "cancel_job": "POST /jobs/{job_id}/cancel",
        "clone_job": "POST /jobs/{job_id}/clone",
        "delete_job": "DELETE /jobs/{job_id}",
        "list_events": "GET /jobs/{job_id}/events",
        "get_log": "GET /jobs/{job_id}/log",
        "list_artifacts": "GET /jobs/{job_id}/artifacts",
        "download_artifact": "GET /jobs/{job_id}/artifacts/{name}",
        "get_report": "GET /jobs/{job_id}/report",
        "download_bundle": "GET /jobs/{job_id}/bundle",
        "get_job_webhook": "GET /jobs/{job_id}/webhook",
        "redeliver_job_webhook": "POST /jobs/{job_id}/webhook/redeliver",
        "list_webhook_messages": "GET /webhooks/messages",
        "list_webhook_secrets": "GET /webhooks/secrets",
        "rotate_webhook_secret": "POST /webhooks/secrets",
        "list_presets": "GET /presets",
        "get_job_schema": "GET /schema/job",
        "get_capabilities": "GET /capabilities",
        "get_health": "GET /healthz",
        "get_readiness": "GET /readyz",
        "get_metrics": "GET /metrics",
    }


def test_openapi_refers_only_to_what_it_defines_and_describes_bodies_and_problems(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert set(references(document)) <= {f"#/components/schemas/{name}" for name in schemas}
    assert "x-schema" not in str(document)
    assert schemas["JobView"]["properties"]["spec"]["$ref"] == "#/components/schemas/Spec"
    assert set(schemas["Problem"]["properties"]["code"].get("enum", schemas.get("Code", {}).get("enum", []))) == set(
        Code
    )
    for path in ("/models", "/datasets"):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/octet-stream"]
        assert body["schema"] == {"type": "string", "format": "binary"}
    assert document["paths"]["/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Spec"
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status.startswith(("4", "5")) and operation["operationId"] != "get_readiness":
                    assert list(response["content"]) == ["application/problem+json"], (operation["operationId"], status)


def test_what_is_answered_is_what_openapi_says(api: Api, document: dict[str, Any]) -> None:
    job = stories.submit(api, dataset=stories.ready_dataset(api))
    rejected = stories.upload_network(api.client)
    stories.inspect_next(api.service.database, None)
    row = stories.start(api.service.database)
    stories.succeed(api, row, {"model.onnx": b"bytes"})
    path = f"/jobs/{job['id']}"
    network, dataset = job["resolved_spec"]["model"], job["resolved_spec"]["data"]["dataset"]
    asked = {
        "/models": "/models",
        "/models/{model_id}": f"/models/{network}",
        "/datasets": "/datasets",
        "/datasets/{dataset_id}": f"/datasets/{dataset}",
        "/jobs": "/jobs",
        "/jobs/{job_id}": path,
        "/jobs/{job_id}/events": f"{path}/events",
        "/jobs/{job_id}/artifacts": f"{path}/artifacts",
        "/jobs/{job_id}/report": f"{path}/report",
        "/presets": "/presets",
        "/capabilities": "/capabilities",
    }
    for template, url in [*asked.items(), ("/models/{model_id}", f"/models/{rejected}")]:
        response = api.client.get(url)
        assert response.status_code == 200, response.text
        schema = document["paths"][template]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        Draft202012Validator({**schema, "components": document["components"]}).validate(response.json())
    problem = {"$ref": "#/components/schemas/Problem", "components": document["components"]}
    Draft202012Validator(problem).validate(api.client.post("/jobs", json={"x": 1}).json())


def test_the_two_settings_of_a_wait_are_published(document: dict[str, Any], settings: Settings) -> None:
    [wait] = [p for p in document["paths"]["/jobs/{job_id}"]["get"]["parameters"] if p["name"] == "wait"]
    assert (wait["schema"]["minimum"], wait["schema"]["maximum"]) == (0, 60)
