"""The SDK against a real API."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy.orm import Session

from api.app import create_app
from modelpress import ApiError, Artifact, Client, DownloadError, Event, JobRecord, Network, StoredData, prepare
from models.attempts import record
from models.events import EngineEvent, MetricEvent, PhaseEvent, ProgressEvent
from models.inspection import NetworkInspection, TensorInfo
from models.inspections import accept_upload, claim_upload
from models.settings import Settings
from models.statuses import JobStatus, Phase
from models.tables import Network as NetworkRow
from models.transitions import cancel, fail, mark_cancelled
from tests.api.serving import Api, served
from tests.client.conftest import TENANT
from tests.client.wire import Wire
from tests.models.rows import ERROR, at, message, submit

Finish = Callable[[str, dict[str, bytes]], None]
TENSOR = TensorInfo(name="x", dtype="float32", shape=[None, 6])
INSPECTION = NetworkInspection(
    format="pt2", inputs=[TENSOR], outputs=[TENSOR], parameters=42, macs=36, layers=[], groups=[]
)


@pytest.fixture
def network_file(tmp_path: Path) -> Path:
    return prepare(torch.nn.Linear(6, 6), torch.randn(2, 6), tmp_path / "linear.pt2")


def _later(seconds: float, act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def _accept(api: Api) -> None:
    with api.service.database.transaction() as session:
        upload = claim_upload(session, lease_until=at(60))
        assert upload is not None
        assert accept_upload(session, NetworkRow, upload.id, 1, INSPECTION)


def test_an_upload_is_hashed_on_the_way_and_returns_once_it_is_ready(
    api: Api, client: Client, network_file: Path
) -> None:
    seen: list[tuple[int, int]] = []
    timer = _later(0.5, lambda: _accept(api))
    network = client.models.upload(network_file, progress=lambda done, size: seen.append((done, size)))
    timer.join()
    size = network_file.stat().st_size
    assert (network.status, network.name, network.size_bytes) == ("ready", "linear.pt2", size)
    assert (network.parameters, network.inputs[0]["name"]) == (42, "x")
    assert seen[-1] == (size, size)
    assert [found.id for found in client.models.list()] == [network.id]
    client.models.delete(network.id)
    with pytest.raises(ApiError) as caught:
        client.models.get(network.id)
    assert (caught.value.code, caught.value.status) == ("not_found", 404)


def test_a_refused_upload_is_an_api_error_with_the_remedy_also_when_the_file_is_big(
    client: Client, tmp_path: Path
) -> None:
    pickle = tmp_path / "net.pt2"
    with pickle.open("wb") as file:
        file.write(b"\x80\x02}q\x00.")
        file.truncate(48 << 20)
    with pytest.raises(ApiError) as caught:
        client.models.upload(pickle)
    assert (caught.value.code, caught.value.status) == ("unsafe_pickle", 422)
    assert "modelpress prepare" in str(caught.value)


def test_creating_a_job_waits_for_the_network_to_be_read(api: Api, client: Client, network_file: Path) -> None:
    network = client.models.upload(network_file, wait=False)
    assert network.status == "inspecting"
    timer = _later(0.5, lambda: _accept(api))
    with pytest.raises(ApiError) as caught:
        client.jobs.create(model=network, steps=[{"step": "prune", "amount": {"macs": 2}}])
    assert caught.value.errors[0]["pointer"].startswith("/steps/0")
    assert caught.value.errors[0]["pointer"] in str(caught.value)
    with pytest.raises(ApiError) as caught:
        client.jobs.create(model=network, steps=[{"step": "prune", "amount": {"macs": 0.5}}])
    timer.join()
    assert caught.value.code != "not_ready"


def _events(session: Session, job_id: str) -> None:
    events: list[EngineEvent] = [
        PhaseEvent(phase=Phase.PRUNING, step_index=0, step_count=1),
        ProgressEvent(percent=40.0, epoch=1, epochs=2, eta_seconds=3.0),
        MetricEvent(name="accuracy", value=0.9, split="val"),
    ]
    assert record(session, job_id, 1, events, at(1))


@pytest.mark.parametrize("timeout", [None, 15.0], ids=["by a stream", "by long polls"])
@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_wait_returns_on_every_terminal_status_with_every_event_once_and_in_order(
    api: Api, client: Client, running_job: str, finish: Finish, status: JobStatus, timeout: float | None
) -> None:
    def work() -> None:
        with api.service.database.transaction() as session:
            _events(session, running_job)
        time.sleep(0.3)
        if status is JobStatus.SUCCEEDED:
            finish(running_job, {"network.onnx": b"onnx"})
            return
        with api.service.database.transaction() as session:
            if status is JobStatus.FAILED:
                assert fail(session, running_job, 1, ERROR, at(2))
            else:
                assert cancel(session, TENANT, running_job, at(2)) is JobStatus.CANCELLING
                assert mark_cancelled(session, running_job, 1, at(2))

    timer = _later(0.3, work)
    seen: list[Event] = []
    percents: list[float] = []
    job = client.jobs.get(running_job)

    def on_event(event: Event) -> None:
        seen.append(event)
        percents.append(job.percent)

    assert job.wait(timeout=timeout, on_event=on_event) is job
    timer.join()
    assert job.status == status
    assert job.is_finished
    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    types = [event.type for event in seen]
    assert types[:5] == ["status", "status", "phase", "progress", "metric"]
    assert types[-1] == "status"
    assert 40.0 in percents
    assert (job.error is None) == (status is not JobStatus.FAILED)
    assert [event.id for event in job.events(after=2)] == [event.id for event in seen[2:]]


def test_waiting_for_a_finished_job_returns_at_once_with_all_its_events(
    client: Client, running_job: str, finish: Finish
) -> None:
    finish(running_job, {"network.onnx": b"onnx"})
    seen: list[Event] = []
    assert client.jobs.get(running_job).wait(on_event=seen.append).status == "succeeded"
    assert len(seen) == 3


def test_a_wait_that_runs_out_says_so_and_leaves_the_job(client: Client, running_job: str) -> None:
    job = client.jobs.get(running_job)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="still running"):
        job.wait(timeout=1)
    assert time.monotonic() - began >= 1
    assert job.refresh().status == "running"


def test_watching_survives_a_service_that_goes_away_and_comes_back(
    api: Api, wire: Wire, running_job: str, finish: Finish
) -> None:
    def outage() -> None:
        wire.refusing = True
        wire.break_all()
        with api.service.database.transaction() as session:
            _events(session, running_job)
        time.sleep(1)
        wire.refusing = False
        finish(running_job, {"network.onnx": b"onnx"})

    timer = _later(0.5, outage)
    seen: list[Event] = []
    with Client(wire.url) as client:
        assert client.jobs.get(running_job).wait(on_event=seen.append).status == "succeeded"
    timer.join()
    assert [event.id for event in seen] == list(range(1, 7))


def test_a_service_that_stays_away_is_an_error_after_the_patience(api: Api, wire: Wire, running_job: str) -> None:
    with Client(wire.url, patience=1.0) as client:
        job = client.jobs.get(running_job)
        wire.refusing = True
        wire.break_all()
        with pytest.raises(ApiError) as caught:
            job.wait()
    assert (caught.value.code, caught.value.status) == ("unreachable", 0)


def test_a_folder_holds_the_files_and_their_hashes_and_whole_files_are_not_fetched_again(
    client: Client, running_job: str, finish: Finish, tmp_path: Path
) -> None:
    finish(running_job, {"network.onnx": b"o" * 3_000_000, "network.pt2": b"p"})
    job = client.jobs.get(running_job)
    fetched: list[str] = []
    folder = job.download(tmp_path / "out", progress=lambda name, done, size: fetched.append(name))
    assert sorted(file.name for file in folder.iterdir()) == ["artifacts.json", "network.onnx", "network.pt2"]
    assert (folder / "network.onnx").read_bytes() == b"o" * 3_000_000
    listed = json.loads((folder / "artifacts.json").read_text())
    assert listed["job"] == running_job
    assert {entry["name"]: len(entry["sha256"]) for entry in listed["artifacts"]} == {
        "network.onnx": 64,
        "network.pt2": 64,
    }
    assert set(fetched) == {"network.onnx", "network.pt2"}
    fetched.clear()
    (folder / "network.pt2").write_bytes(b"changed")
    job.download(folder, progress=lambda name, done, size: fetched.append(name))
    assert set(fetched) == {"network.pt2"}
    with pytest.raises(DownloadError, match=r"No file network\.tflite"):
        job.download(folder, names=["network.tflite"])
    assert job.report()["schema_version"] == 1


def test_a_cut_download_goes_on_where_it_broke(wire: Wire, running_job: str, finish: Finish, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    finish(running_job, {"network.onnx": content})
    with Client(wire.url) as client:
        job = client.jobs.get(running_job)
        job.artifacts()
        wire.cut_after = 2_500_000
        counted: list[int] = []
        job.download(tmp_path / "out", progress=lambda name, done, size: counted.append(done))
    assert wire.cuts == 1
    assert (tmp_path / "out" / "network.onnx").read_bytes() == content
    assert counted == sorted(counted)
    assert counted[-1] == len(content)


def test_bytes_that_changed_on_the_way_are_not_kept(
    wire: Wire, running_job: str, finish: Finish, tmp_path: Path
) -> None:
    finish(running_job, {"network.onnx": bytes(200_000)})
    with Client(wire.url) as client:
        job = client.jobs.get(running_job)
        wire.garble = True
        with pytest.raises(DownloadError, match="arrived damaged"):
            job.download(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_cancelling_a_queued_job_and_one_that_has_ended(
    api: Api, client: Client, running_job: str, finish: Finish
) -> None:
    with api.service.database.transaction() as session:
        queued = submit(session, TENANT)
    assert client.jobs.cancel(queued).wait(timeout=5).status == "cancelled"
    finish(running_job, {})
    with pytest.raises(ApiError) as caught:
        client.jobs.cancel(running_job)
    assert (caught.value.code, caught.value.status) == ("already_finished", 409)
    assert {job.id for job in client.jobs.list()} == {queued, running_job}
    assert [job.id for job in client.jobs.list(status="cancelled")] == [queued]
    client.jobs.delete(queued)
    assert [job.id for job in client.jobs.list(limit=1)] == [running_job]


def test_a_jobs_message_and_what_it_is_signed_with(api: Api) -> None:
    with api.service.database.transaction() as session:
        told = message(session, TENANT)
    settings = api.service.settings.model_copy(update={"webhook_secret": "s" * 32})
    with served(settings) as hooked, Client(hooked.base_url) as client:
        assert client.webhooks.secrets() == []
        made = client.webhooks.rotate()
        assert client.webhooks.secrets() == [made]
        job = client.jobs.get(told.job_id)
        assert (job.webhook or {})["status"] == "pending"
        assert list(client.webhooks.messages(status="pending")) == [job.webhook_message()]
        assert job.redeliver_webhook()["id"] == told.id


def test_the_log_and_what_the_service_can_do_are_told(client: Client, running_job: str) -> None:
    assert client.jobs.get(running_job).log() == ""
    assert {"int8", "half", "balanced", "tiny"} <= {preset["name"] for preset in client.presets()}
    assert "prune" in client.capabilities()["steps"]
    assert client.schema()["type"] == "object"


@pytest.mark.parametrize(
    ("record", "view"),
    [
        (JobRecord, "JobView"),
        (Network, "NetworkDetail"),
        (StoredData, "DatasetView"),
        (Artifact, "ArtifactView"),
    ],
)
def test_the_types_have_the_fields_of_the_published_api(record: Any, view: str, tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite:///{tmp_path}/none.sqlite3", open_access=True)
    published = create_app(settings).openapi()["components"]["schemas"][view]["properties"]
    assert {known.name for known in record.answer_fields()} == set(published)
