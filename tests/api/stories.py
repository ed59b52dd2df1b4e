"""How things come to be in these tests: real requests, and where a worker would act, the worker's own functions."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import httpx

from models import inspections, transitions
from models.attempts import PublishedArtifact, append_log, record
from models.database import Database, now
from models.errors import Code, Failure
from models.events import EngineEvent
from models.inspection import DatasetInspection, GroupInfo, LabelInfo, LayerInfo, NetworkInspection, TensorInfo
from models.report import Measurement, Provenance, Report
from models.sizes import Polynomials, Sizes
from models.tables import Job
from tests.api.serving import Api

LEASE = timedelta(seconds=60)

NETWORK = NetworkInspection(
    format="pt2",
    inputs=[TensorInfo(name="x", dtype="float32", shape=[None, 1, 28, 28])],
    outputs=[TensorInfo(name="logits", dtype="float32", shape=[None, 10])],
    parameters=10_000,
    macs=1_000_000,
    layers=[
        LayerInfo(
            name="conv1", kind="conv2d", shape=[32, 1, 3, 3], parameters=288, macs=9000, group="g0", prunable=True
        ),
        LayerInfo(
            name="fc",
            kind="linear",
            shape=[10, 32],
            parameters=320,
            macs=320,
            group=None,
            prunable=False,
            reason="output",
        ),
    ],
    groups=[GroupInfo(id="g0", units=32, layers=["conv1"])],
    sizes=Sizes(
        most=Polynomials(
            parameters=((400, ()), (300, (0,))),
            macs=((40_000, ()), (30_000, (0,))),
            bytes=((1600, ()), (1200, (0,))),
        )
    ),
)
DATASET = DatasetInspection(
    format="npz",
    samples=100,
    inputs=[TensorInfo(name="x", dtype="float32", shape=[1, 28, 28])],
    labels=LabelInfo(dtype="int64", shape=[], classes=10, minimum=0, maximum=9),
)
PRUNE: dict[str, Any] = {"step": "prune", "amount": {"macs": 0.5}}


def a_zip(names: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def a_pt2(padding: bytes = b"") -> bytes:
    """Begins as torch.export writes it; what is inside matters to the inspection, not here."""
    return a_zip({"net/archive_format": b"pt2", "net/data/weights/weight_0": padding})


def an_npz(padding: bytes = b"") -> bytes:
    return a_zip({"x.npy": b"\x93NUMPY\x01\x00" + padding})


def upload_network(client: httpx.Client, body: bytes | None = None) -> str:
    response = client.post("/models", params={"name": "small"}, content=a_pt2() if body is None else body)
    assert response.status_code == 201, response.text
    network_id: str = response.json()["id"]
    return network_id


def upload_dataset(client: httpx.Client) -> str:
    response = client.post("/datasets", params={"name": "digits"}, content=an_npz())
    assert response.status_code == 201, response.text
    dataset_id: str = response.json()["id"]
    return dataset_id


def inspect_next(database: Database, found: NetworkInspection | DatasetInspection | None) -> None:
    """What the control worker does; `None` rejects the file."""
    with database.transaction() as session:
        row = inspections.claim_upload(session, lease_until=now(session) + LEASE)
        assert row is not None
        if found is None:
            error = Failure(Code.UNSUPPORTED_OP, "The operator aten::made_up has no rule here.").as_error()
            assert inspections.reject_upload(session, type(row), row.id, row.attempt, error)
        else:
            assert inspections.accept_upload(session, type(row), row.id, row.attempt, found)


def ready_network(api: Api, client: httpx.Client | None = None) -> str:
    network_id = upload_network(client or api.client)
    inspect_next(api.service.database, NETWORK)
    return network_id


def ready_dataset(api: Api, client: httpx.Client | None = None) -> str:
    dataset_id = upload_dataset(client or api.client)
    inspect_next(api.service.database, DATASET)
    return dataset_id


def a_spec(api: Api, client: httpx.Client | None = None, **more: Any) -> dict[str, Any]:
    return {"model": ready_network(api, client), "steps": [PRUNE], **more}


def submit(api: Api, client: httpx.Client | None = None, **more: Any) -> dict[str, Any]:
    response = (client or api.client).post("/jobs", json=a_spec(api, client, **more))
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def claimed(database: Database) -> Job | None:
    with database.transaction() as session:
        return transitions.claim(
            session, device_class="cpu", worker_id="w1", lease_until=now(session) + LEASE, now=now(session)
        )


def start(database: Database) -> Job:
    job = claimed(database)
    assert job is not None
    return job


def say(database: Database, job: Job, *events: EngineEvent) -> None:
    with database.transaction() as session:
        assert record(session, job.id, job.attempt, events, now(session))


def write_log(database: Database, job: Job, text: str) -> None:
    with database.transaction() as session:
        assert append_log(session, job.id, job.attempt, text)


def a_report() -> Report:
    measured = Measurement(parameters=10_000, nonzero_parameters=10_000, macs=1_000_000)
    return Report(
        original=measured,
        compressed=measured,
        files=[],
        steps=[],
        layers=[],
        verification=[],
        mask_check=None,
        split_made_here=False,
        warnings=[],
        seconds={},
        provenance=Provenance(
            versions={}, device="cpu", seed=0, model_sha256="0" * 64, dataset_sha256=None, spec_sha256="0" * 64
        ),
    )


def succeed(api: Api, job: Job, files: Mapping[str, bytes] | None = None) -> None:
    artifacts = []
    for name, content in (files or {}).items():
        with api.service.blobs.writer() as writer:
            writer.write(content)
            blob = writer.publish()
        artifacts.append(
            PublishedArtifact(
                name=name,
                kind="onnx",
                content_type="application/octet-stream",
                size_bytes=blob.size_bytes,
                sha256=blob.sha256,
            )
        )
    with api.service.database.transaction() as session:
        assert transitions.succeed(session, job.id, job.attempt, a_report(), artifacts, now(session))


def fail(database: Database, job: Job) -> None:
    error = Failure(Code.NAN_LOSS, "The loss became NaN in epoch 1.").as_error("finetuning")
    with database.transaction() as session:
        assert transitions.fail(session, job.id, job.attempt, error, now(session))


def problem_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an answer that must be one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code, problem
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["hint"]
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem
