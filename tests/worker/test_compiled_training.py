"""A job that compiles on a real worker, which confines it with a compiler and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.report import Report
from models.rules import resolve
from models.spec import FinetuneStep, Spec
from models.statuses import JobStatus
from models.tables import Dataset, Network
from tests.engine.subjects import lifted
from tests.engine.train.test_processes import Plain
from tests.engine.train.test_step import patterns, started
from tests.services import Valkey
from tests.worker.fleet import Fleet, until
from worker.engine.compiler import why_not_here
from worker.engine.data.inspect import inspect_dataset
from worker.engine.inspect import inspect_network
from worker.engine.train.step import run

PATIENCE = 600.0


@pytest.mark.skipif(os.environ.get("MODELPRESS_SWEEPS") != "full", reason="two minutes: MODELPRESS_SWEEPS=full")
@pytest.mark.timeout(900)
def test_a_job_is_trained_through_compiled_kernels_as_it_is_without(
    tmp_path: Path, sqlite_url: str, valkey: Valkey
) -> None:
    if (lacking := why_not_here("cpu")) is not None:
        pytest.skip(lacking)
    step = {"step": "finetune", "epochs": 2, "batch_size": 32, "speed": {"compile": True}}
    torch.manual_seed(0)
    subject = lifted(Plain(), (torch.randn(2, 1, 8, 8),), tmp_path)
    usual = FinetuneStep.model_validate(step | {"speed": {}})
    alone = run(subject, usual, started(subject, tmp_path, patterns(171), usual))
    network, data = tmp_path / "network.pt2", tmp_path / "data.npz"
    np.savez(data, **patterns(171))  # type: ignore[arg-type]
    with Fleet(tmp_path, sqlite_url, valkey, MODELPRESS_CLOCK_SCALE="1") as fleet:
        fleet.start("device", program="worker")
        given = {
            "model": fleet.upload(Network, network.read_bytes()),
            "dataset": fleet.upload(Dataset, data.read_bytes()),
        }
        spec = Spec.model_validate({**given, "steps": [step], "export": ["safetensors"], "seed": 0})
        job_id = fleet.submit_spec(resolve(spec, inspect_network(network), inspect_dataset(data)))
        until(lambda: JobStatus(fleet.job(job_id).status).is_terminal, "its end", PATIENCE)
        job = fleet.job(job_id)
        assert job.status == "succeeded", (job.error, fleet.log(job_id))
    details = Report.model_validate(job.report).steps[0].details
    assert details["speed"]["compiled"] is True
    for own, other in zip(details["history"], alone["history"], strict=True):
        assert own["val_loss"] == pytest.approx(other["val_loss"], rel=1e-4)
