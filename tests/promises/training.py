"""P23: the real engine, killed at any moment of fine-tuning, alone or with its host and all that lay there, delivers
the bytes of one that was not."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import psutil
from sqlalchemy import select

from models.report import Report
from models.rules import resolve
from models.spec import Spec
from models.statuses import JobStatus
from models.tables import Artifact, Checkpoint, Dataset, Network, Worker
from tests.e2e.jobs import write_data, write_network
from tests.object_store import ObjectStore
from tests.promises.outcome import Outcome
from tests.promises.place import Place
from tests.worker.fleet import until
from worker.engine.data.inspect import inspect_dataset
from worker.engine.inspect import inspect_network

PATIENCE = 600.0


def engine_killed(place: Place, injections: int) -> Outcome:
    place.fleet.start("device", program="worker")

    def kill(_: str) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            place.fleet.engine().kill()

    return _trained_to_the_same_bytes(place, injections, kill)


def host_lost(place: Place, injections: int) -> Outcome:
    """Hosts share the database, the broker and a bucket. Each has a name and a disk of its own, which goes with it."""
    store = ObjectStore()
    with contextlib.closing(store):
        settings = store.settings()
        place.fleet.blobs = store.blobs(settings)
        place.fleet.environment |= {f"MODELPRESS_{name.upper()}": str(value) for name, value in settings.items()}
        place.workers(devices=0)
        return _trained_to_the_same_bytes(place, injections, _Hosts(place).lose)


class _Hosts:
    """Two at first, and always one."""

    def __init__(self, place: Place) -> None:
        self._fleet, self._numbers = place.fleet, itertools.count(1)
        self._up: dict[str, subprocess.Popen[bytes]] = {}
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._add, (next(self._numbers), next(self._numbers))))

    def lose(self, job_id: str) -> None:
        """The one that runs this job."""
        with self._fleet.database.read() as session:
            name = session.get_one(Worker, self._fleet.job(job_id).worker_id).versions["host"]
        worker = self._up.pop(name)
        worker.kill()
        worker.wait()
        disk = self._fleet.work / name
        until(lambda: not self._fleet.engines(disk), "its engine to die with it")
        shutil.rmtree(disk)
        if not self._up:
            self._add(next(self._numbers))

    def _add(self, number: int) -> None:
        name = f"host-{number}"
        disk = {"MODELPRESS_WORK": str(self._fleet.work / name)}
        self._up[name] = self._fleet.start("device", program=f"tests.promises.host {name}", **disk)


def _trained_to_the_same_bytes(place: Place, injections: int, strike: Callable[[str], None]) -> Outcome:
    """Strikes while it trains, all at one job; its files are compared with those of a job left alone."""
    outcome, fleet, chance = Outcome(), place.fleet, random.Random(5)
    network_file = write_network("resnet18", place.folder)
    dataset_file = write_data("resnet18", place.folder, samples=480)
    network, dataset = inspect_network(network_file), inspect_dataset(dataset_file)
    network_id = fleet.upload(Network, network_file.read_bytes())
    dataset_id = fleet.upload(Dataset, dataset_file.read_bytes())
    with fleet.database.transaction() as session:
        session.get_one(Network, network_id).status = session.get_one(Dataset, dataset_id).status = "ready"

    def submit() -> str:
        steps = [
            {"step": "prune", "amount": {"macs": 0.4}, "round_to": 2},
            {"step": "finetune", "epochs": 2 + injections // 2, "batch_size": 8},
        ]
        asked = {"model": network_id, "dataset": dataset_id, "steps": steps, "export": ["onnx"]}
        spec = Spec.model_validate(asked)
        return fleet.submit_spec(resolve(spec, network, dataset))

    def states(job_id: str) -> int:
        return sum(event["type"] == "checkpoint" and event["epoch"] is not None for event in fleet.events(job_id))

    job_id = submit()
    for _ in range(injections):
        seen = states(job_id)
        until(lambda: states(job_id) > seen or fleet.job(job_id).status in ("succeeded", "failed"), "a state", PATIENCE)  # noqa: B023
        time.sleep(chance.uniform(0.0, 0.5))
        if fleet.job(job_id).phase != "finetuning":
            break
        killed, attempt = time.time(), fleet.job(job_id).attempt
        strike(job_id)
        until(lambda: fleet.job(job_id).attempt > attempt, "the next attempt", PATIENCE)  # noqa: B023
        outcome.injections += 1
        outcome.seconds.append(place.started(job_id, attempt + 1) - killed)
    place.account(outcome, [job_id], patience=PATIENCE)
    assert fleet.job(job_id).status == JobStatus.SUCCEEDED, fleet.log(job_id)[-3000:]
    outcome.require(outcome.injections > 0, "training ended before anything was killed")
    report = Report.model_validate(fleet.job(job_id).report)
    outcome.require(all(step.resumed for step in report.steps), "work was done again that a checkpoint had kept")
    interrupted = _files(place, job_id)
    _forget(place)
    alone = submit()
    place.account(outcome, [alone], patience=PATIENCE)
    outcome.require(fleet.job(alone).attempt == 1, "the job that was to be left alone was not")
    uninterrupted = _files(place, alone)
    outcome.lost += sum(interrupted.get(name) != sha256 for name, sha256 in uninterrupted.items())
    outcome.require(set(uninterrupted) == {"model.onnx", "spec.json"}, str(set(uninterrupted)))
    return outcome


def _files(place: Place, job_id: str) -> dict[str, str]:
    """SHA-256 of each file but those that tell times: the report, its page and the card."""
    with place.fleet.database.read() as session:
        rows = session.scalars(select(Artifact).where(Artifact.job_id == job_id)).all()
        return {row.name: row.sha256 for row in rows if row.kind not in ("report", "page", "card")}


def _forget(place: Place) -> None:
    """Leave no checkpoint that the next job could go on from."""
    with place.fleet.database.transaction() as session:
        for row in session.scalars(select(Checkpoint)).all():
            session.delete(row)
