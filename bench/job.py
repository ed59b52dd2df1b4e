"""Jobs: how soon they start, and what the service adds to the work itself."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.row import Row
from deploy.demo_network import MEAN, STD, digits, train
from modelpress import Client, Event, Job, Network, StoredData, prepare, prepare_data
from models.messages import CompressRequest, InputFile, NetworkFile
from models.spec import Spec
from worker.engine.pipeline import compress

STARTS = 5
ROUNDS = 2
STEPS = [
    {"step": "prune", "amount": {"macs": 0.5}},
    {"step": "finetune", "epochs": 2},
    {"step": "quantize"},
]


def starts(client: Client, folder: Path) -> list[Row]:
    """From the submit of a small job to its claim by a worker, and to the first word of its engine."""
    network = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))
    model = client.models.upload(prepare(network, torch.zeros(2, 16), folder / "small.pt2"))
    claimed, spoke = [], []
    for seed in range(STARTS):
        job = client.jobs.create(
            model=model, seed=seed, export=["pt2"], steps=[{"step": "prune", "amount": {"channels": 0.5}}]
        )
        events: list[Event] = []
        _succeeded(job.wait(on_event=events.append))
        created = _moment(job.created_at)
        claimed.append(_milliseconds(created, _moment(job.started_at or "")))
        spoke.append(_milliseconds(created, _moment(next(event.at for event in events if event.type == "phase"))))
    return [
        Row("submit to claim by an idle worker, median", median(claimed), "ms", None),
        Row("submit to claim by an idle worker, slowest", max(claimed), "ms", None),
        Row("submit to the engine's first word, median", median(spoke), "ms", None),
    ]


def whole_jobs(client: Client, folder: Path) -> list[Row]:
    """The demo's job through the service, and the same call of the engine in this process, by turns."""
    data = digits()
    network_file = prepare(train(data, 2, lambda epoch, value: None), torch.zeros(2, 1, 28, 28), folder / "resnet.pt2")
    data_file = prepare_data(data, folder / "digits.npz")
    model, dataset = client.models.upload(network_file), client.datasets.upload(data_file)
    served, direct = [], []
    for seed in range(ROUNDS):
        job = _submit(client, model, dataset, seed)
        served.append(_milliseconds(_moment(job.created_at), _moment(job.finished_at or "")) / 1000)
        request = CompressRequest(
            network=NetworkFile(path=network_file),
            dataset=InputFile(path=data_file),
            spec=Spec.model_validate(job.resolved_spec),
            folder=folder / f"direct-{seed}",
        )
        began = time.monotonic()
        compress(request, lambda event: None)
        direct.append(time.monotonic() - began)
    ratio = median(one / other for one, other in zip(served, direct, strict=True))
    return [
        Row("prune, fine-tune, int8 as a job, submit to succeeded", median(served), "s", ratio),
        Row("the same steps called in one Python process", median(direct), "s", None),
    ]


def _submit(client: Client, model: Network, dataset: StoredData, seed: int) -> Job:
    choices: dict[str, Any] = {"task": "classification", "transform": {"mean": [MEAN], "std": [STD]}}
    job = client.jobs.create(model=model, data={"dataset": dataset.id, **choices}, steps=STEPS, seed=seed)
    return _succeeded(job.wait())


def _succeeded(job: Job) -> Job:
    if job.status != "succeeded":
        raise RuntimeError(f"job {job.id} {job.status}: {job.error}\n{job.log()[-2000:]}")
    return job


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _milliseconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds() * 1000
