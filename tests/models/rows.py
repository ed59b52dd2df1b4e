"""Rows to test with, made by the product's own functions, on a clock that the test moves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from models import transitions
from models.attempts import PublishedArtifact
from models.errors import Code, Failure
from models.report import Measurement, Provenance, Report
from models.spec import Spec, Webhook
from models.statuses import JobStatus
from models.tables import Base, Job, Network, WebhookMessage

LEASE = 30
ERROR = Failure(Code.ENGINE_CRASHED, "The engine was killed by signal 11.").as_error(phase="pruning")
ARTIFACT = PublishedArtifact(
    name="network.onnx", kind="onnx", content_type="application/octet-stream", size_bytes=3, sha256="a" * 64
)
SPEC = Spec.model_validate({"model": "net_1", "steps": [{"step": "prune", "amount": {"macs": 0.5}}]})
URL = "https://hooks.example/ended"
_MEASURED = Measurement(parameters=9, nonzero_parameters=9, macs=9)
REPORT = Report(
    original=_MEASURED,
    compressed=_MEASURED,
    steps=[],
    layers=[],
    files=[],
    verification=[],
    mask_check=0.0,
    split_made_here=False,
    warnings=[],
    seconds={},
    provenance=Provenance(
        versions={}, device="cpu", seed=0, model_sha256="a" * 64, dataset_sha256=None, spec_sha256="b" * 64
    ),
)


def at(seconds: float) -> datetime:
    """A moment on the test's clock."""
    return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def add_network(session: Session, tenant: str) -> str:
    network = Network(
        id=f"net_{tenant}",
        tenant=tenant,
        name="resnet.pt2",
        sha256="0" * 64,
        size_bytes=1,
        status="ready",
        attempt=1,
        strikes=0,
        created_at=at(0),
    )
    if session.get(Network, network.id) is None:
        session.add(network)
        session.flush()
    return network.id


def submit(session: Session, tenant: str = "a", *, device: str = "auto", seconds: float = 0, spec: Spec = SPEC) -> str:
    job = transitions.submit(
        session,
        tenant=tenant,
        name=None,
        network_id=add_network(session, tenant),
        dataset_id=None,
        spec=spec,
        resolved_spec=spec,
        device=device,
        now=at(seconds),
    )
    return job.id


def message(session: Session, tenant: str = "a", *, url: str = URL, seconds: float = 0) -> WebhookMessage:
    """Of a job that was cancelled at that second."""
    spec = SPEC.model_copy(update={"webhook": Webhook(url=url)})
    job_id = submit(session, tenant, seconds=seconds, spec=spec)
    assert transitions.cancel(session, tenant, job_id, at(seconds)) is JobStatus.CANCELLED
    return session.scalars(select(WebhookMessage).where(WebhookMessage.job_id == job_id)).one()


def claim(
    session: Session,
    *,
    worker: str = "w",
    device_class: str = "cpu",
    seconds: float = 0,
    max_running: int | None = None,
) -> Job | None:
    return transitions.claim(
        session,
        device_class=device_class,
        worker_id=worker,
        lease_until=at(seconds + LEASE),
        now=at(seconds),
        max_running=max_running,
    )


def job_in(session: Session, status: JobStatus, spec: Spec = SPEC) -> str:
    """A job of tenant `a` that came to `status` by the usual road; its attempt is 1 unless it never started."""
    job_id = submit(session, spec=spec)
    if status is JobStatus.QUEUED:
        return job_id
    claimed = claim(session)
    assert claimed is not None
    assert claimed.id == job_id
    match status:
        case JobStatus.SUCCEEDED:
            assert transitions.succeed(session, job_id, 1, REPORT, [ARTIFACT], at(1))
        case JobStatus.FAILED:
            assert transitions.fail(session, job_id, 1, ERROR, at(1))
        case JobStatus.CANCELLING | JobStatus.CANCELLED:
            assert transitions.cancel(session, "a", job_id, at(1)) is JobStatus.CANCELLING
            if status is JobStatus.CANCELLED:
                assert transitions.mark_cancelled(session, job_id, 1, at(2))
    return job_id


def everything(session: Session) -> dict[str, list[Any]]:
    """Every row of every table, to see whether anything changed."""
    return {
        name: [tuple(row) for row in session.execute(select(table).order_by(*table.primary_key.columns))]
        for name, table in Base.metadata.tables.items()
    }
