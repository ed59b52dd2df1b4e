"""The real engine under the worker, on a real network: refused, killed, resumed, delivered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sqlalchemy import select

from models.inspection import DatasetInspection, NetworkInspection
from models.messages import TASK_RUN_JOB, queue_of
from models.report import Report
from models.rules import resolve
from models.spec import Spec
from models.statuses import JobStatus
from models.tables import Artifact, Checkpoint, Dataset, Network
from tests.e2e.jobs import write_data, write_network
from tests.engine.train.test_processes import Normal
from tests.engine.train.test_step import patterns
from tests.networks import export_pt2
from tests.services import Valkey
from tests.worker.fleet import Fleet, until
from worker.engine.data.inspect import inspect_dataset
from worker.engine.inspect import inspect_network
from worker.sandbox import has_networks

PATIENCE = 120.0
STEPS = [
    {"step": "prune", "amount": {"macs": 0.4}, "round_to": 2},
    {"step": "finetune", "epochs": 2},
    {"step": "quantize", "calibration_samples": 32},
]


def _resolved(fleet: Fleet, spec: Spec, network_id: str, dataset_id: str) -> Spec:
    network = fleet.uploaded(Network, network_id).inspection
    dataset = fleet.uploaded(Dataset, dataset_id).inspection
    return resolve(spec, NetworkInspection.model_validate(network), DatasetInspection.model_validate(dataset))


@pytest.mark.slow
def test_a_job_whose_engine_and_whose_worker_are_killed_is_delivered_all_the_same(
    tmp_path: Path, sqlite_url: str, valkey: Valkey
) -> None:
    with Fleet(tmp_path, sqlite_url, valkey, MODELPRESS_CLOCK_SCALE="0.2") as fleet:
        fleet.start("control", program="worker")
        first = fleet.start("device", program="worker")
        network_id = fleet.upload(Network, write_network("resnet18", tmp_path).read_bytes())
        dataset_id = fleet.upload(Dataset, write_data("resnet18", tmp_path).read_bytes())
        pickle_id = fleet.upload(Network, b"\x80\x04}q\x00.")
        fleet.nudge_inspection()
        for table, upload_id in ((Network, network_id), (Dataset, dataset_id), (Network, pickle_id)):
            until(
                lambda table=table, upload_id=upload_id: fleet.uploaded(table, upload_id).status != "inspecting",  # type: ignore[misc]
                "the inspection",
                PATIENCE,
            )
        assert fleet.uploaded(Network, network_id).status == "ready", fleet.uploaded(Network, network_id).error
        assert fleet.uploaded(Dataset, dataset_id).status == "ready", fleet.uploaded(Dataset, dataset_id).error
        assert fleet.uploaded(Network, pickle_id).status == "rejected"

        spec = Spec.model_validate({"model": network_id, "dataset": dataset_id, "steps": STEPS, "export": ["onnx"]})
        job_id = fleet.submit_spec(_resolved(fleet, spec, network_id, dataset_id))
        until(lambda: fleet.job(job_id).phase == "finetuning", "fine-tuning", PATIENCE)
        fleet.engine().kill()
        until(lambda: (job := fleet.job(job_id)).attempt == 2 and job.phase == "exporting", "the export", PATIENCE)
        first.kill()
        first.wait()
        until(lambda: not fleet.engines(), "the engine to die with its worker")
        fleet.start("device", program="worker")
        until(lambda: JobStatus(fleet.job(job_id).status).is_terminal, "its end", PATIENCE)
        job = fleet.job(job_id)
        assert job.status == "succeeded", (job.error, fleet.log(job_id))
        assert (job.attempt, job.strikes) == (3, 2)
        report = Report.model_validate(job.report)
        assert [step.resumed for step in report.steps] == [True, True, True]

        with fleet.database.read() as session:
            artifacts = {row.name: row for row in session.scalars(select(Artifact).where(Artifact.job_id == job_id))}
        assert {"model.onnx", "report.json"} <= set(artifacts)
        assert not any(row.partial for row in artifacts.values())
        onnxruntime.InferenceSession(fleet.blobs.open(artifacts["model.onnx"].sha256).read())
        until(lambda: not fleet.runs_on_disk(), "no run folder to be left")


@pytest.mark.slow
@pytest.mark.skipif(not has_networks(), reason="engines can have no network of their own here")
def test_a_job_trains_in_two_confined_processes_that_stop_go_on_and_end_as_one(
    tmp_path: Path, sqlite_url: str, valkey: Valkey
) -> None:
    with Fleet(tmp_path, sqlite_url, valkey, MODELPRESS_CLOCK_SCALE="1") as fleet:
        worker = fleet.start("device", program="worker")
        job_id = _trained_in_two_processes(fleet, tmp_path)
        until(lambda: any(event.get("epoch") for event in fleet.events(job_id)), "an epoch", PATIENCE)
        assert len([each for each in fleet.engines() if "worker.engine.member" in each.cmdline()]) == 1
        worker.terminate()
        until(lambda: fleet.job(job_id).status == "queued", "the job to be given back", PATIENCE)
        with fleet.database.read() as session:
            assert session.scalars(select(Checkpoint)).all(), "the state it stopped in"
        said = len(fleet.events(job_id))
        fleet.start("device", program="worker")
        fleet.celery.send_task(TASK_RUN_JOB, queue=queue_of("cpu"))
        until(lambda: any(event.get("epoch") for event in fleet.events(job_id)[said:]), "an epoch", PATIENCE)
        assert (fleet.job(job_id).attempt, fleet.job(job_id).strikes) == (2, 0)
        fleet.cancel(job_id)
        until(lambda: fleet.job(job_id).status == "cancelled", "the end", PATIENCE)
        until(lambda: not fleet.engines() and not fleet.runs_on_disk(), "nothing to be left", PATIENCE)


def test_a_worker_whose_engines_have_no_network_says_that_a_job_in_two_processes_cannot_run_there(
    tmp_path: Path, sqlite_url: str, valkey: Valkey
) -> None:
    with Fleet(tmp_path, sqlite_url, valkey) as fleet:
        fleet.start("device", program="tests.worker.old_kernel networks worker")
        job = fleet.wait(_trained_in_two_processes(fleet, tmp_path))
        [worker] = fleet.registered()
    assert job.error is not None
    assert (job.error["code"], job.error["where"]) == ("unsupported_here", "/steps/0/speed/processes")
    assert "network" not in worker.sandbox


def _trained_in_two_processes(fleet: Fleet, folder: Path) -> str:
    np.savez(folder / "data.npz", **patterns())  # type: ignore[arg-type]
    network = export_pt2(Normal(), (torch.randn(2, 1, 8, 8),), folder / "network.pt2")
    network_id = fleet.upload(Network, network.read_bytes())
    dataset_id = fleet.upload(Dataset, (folder / "data.npz").read_bytes())
    step = {"step": "finetune", "epochs": 1000, "speed": {"processes": 2}}
    spec = Spec.model_validate({"model": network_id, "dataset": dataset_id, "steps": [step]})
    return fleet.submit_spec(resolve(spec, inspect_network(network), inspect_dataset(folder / "data.npz")))
