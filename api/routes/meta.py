"""About the service itself: presets, schema, capabilities, health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from api.deps import CallerDep, ServiceDep, known_parameters, metrics_reader
from api.services.capabilities import capabilities
from models.presets import PRESETS
from models.spec import Spec
from models.views import Capabilities, Health, PresetList, Readiness

router = APIRouter(tags=["meta"])


@router.get("/presets", operation_id="list_presets")
def list_presets(_: CallerDep) -> PresetList:
    """Named lists of steps, to be used as `"preset": "balanced"`."""
    return PresetList(data=list(PRESETS.values()))


@router.get("/schema/job", operation_id="get_job_schema")
def get_job_schema(_: CallerDep) -> dict[str, Any]:
    """The JSON Schema of a job spec."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Spec.model_json_schema()}


@router.get("/capabilities", operation_id="get_capabilities")
def get_capabilities(service: ServiceDep, caller: CallerDep) -> Capabilities:
    """What this deployment can do, and how much of it you may."""
    return capabilities(service, caller.limits)


@router.get("/healthz", operation_id="get_health", dependencies=[Depends(known_parameters)])
async def get_health() -> Health:
    """Whether the process lives."""
    return Health()


@router.get(
    "/readyz",
    operation_id="get_readiness",
    dependencies=[Depends(known_parameters)],
    responses={503: {"model": Readiness, "description": "Something does not answer"}},
)
def get_readiness(service: ServiceDep, response: Response) -> Readiness:
    """Whether database, broker and blob store answer."""
    readiness = service.readiness.look()
    if readiness.status != "ok":
        response.status_code = 503
        response.headers["Retry-After"] = "5"
    return readiness


@router.get(
    "/metrics",
    operation_id="get_metrics",
    dependencies=[Depends(metrics_reader)],
    response_class=Response,
    responses={
        200: {
            "description": "The text format of Prometheus",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
    },
)
def get_metrics(service: ServiceDep) -> Response:
    """Requests, jobs, queues, workers and bytes of the whole deployment, without anything of a tenant's. It wants a
    token of its own, `MODELPRESS_METRICS_TOKEN`; under open access, none."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
