"""Workers as processes of their own, over a real broker and database, with clocks that run fast."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
from celery import Celery
from sqlalchemy import select

from models import inspections, transitions
from models.blobs import Blobs, FolderBlobs
from models.broker import celery_settings
from models.database import Database, now
from models.inspections import Upload, UploadTable
from models.messages import CONTROL_QUEUE, TASK_INSPECT, TASK_RUN_JOB, queue_of
from models.spec import Spec
from models.statuses import JobStatus
from models.tables import Dataset, Event, Job, Log, Network, Worker
from tests.services import Valkey

SCALE = 0.05
PATIENCE = 30.0
SUBJECT = "tests.worker.subject_worker"
T = TypeVar("T")


def until(look: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Wait for a truth to come about."""
    deadline = time.monotonic() + seconds
    while not (value := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for: {what}")
        time.sleep(0.02)
    return value


class Fleet:
    """One deployment. Leaving it kills what still runs, and then nothing may be left of any engine."""

    def __init__(self, folder: Path, database_url: str, valkey: Valkey, **environment: str) -> None:
        self.folder, self.valkey = folder, valkey
        self.database = Database(database_url)
        self.blobs: Blobs = FolderBlobs(folder / "blobs")
        self.work = folder / "work"
        self.environment = {
            **os.environ,
            "MODELPRESS_DATABASE_URL": database_url,
            "MODELPRESS_BROKER_URL": valkey.url,
            "MODELPRESS_BLOBS": str(folder / "blobs"),
            "MODELPRESS_WORK": str(self.work),
            "MODELPRESS_CLOCK_SCALE": str(SCALE),
            "MODELPRESS_ENGINE_THREADS": "1",
            **environment,
        }
        self.celery = Celery("tests", set_as_current=False)
        self.celery.conf.update(celery_settings(valkey.url))
        self.workers: list[subprocess.Popen[bytes]] = []
        self.network_id = ""
        self._seeds = itertools.count(1)

    def __enter__(self) -> Fleet:
        self.network_id = self.upload(Network, b"good network")
        with self.database.transaction() as session:
            session.get_one(Network, self.network_id).status = "ready"
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.celery.close()
        self.database.close()
        until(lambda: not self.engines(), "every engine to be gone")

    def start(self, kind: str, *, program: str = SUBJECT, **environment: str) -> subprocess.Popen[bytes]:
        """A worker process, ready to be nudged; with the engines of `children.py` unless `program` is `worker`.

        `program` is a module, or one with arguments that come before the kind.
        """
        with (self.folder / "workers.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", *program.split(), kind],
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.workers.append(worker)
        known = {row.id for row in self.registered()}
        until(lambda: {row.id for row in self.registered()} - known, f"{kind} worker to register", 4 * PATIENCE)
        return worker

    def registered(self) -> list[Worker]:
        with self.database.read() as session:
            return list(session.scalars(select(Worker)))

    def upload(self, table: UploadTable, content: bytes) -> str:
        path = self.folder / f"upload-{time.monotonic_ns()}"
        path.write_bytes(content)
        blob = self.blobs.put_file(path)
        path.unlink()
        with self.database.transaction() as session:
            row = inspections.add_upload(session, table, tenant="t", name="n", blob=blob, now=now(session))
        return row.id

    def uploaded(self, table: UploadTable, upload_id: str) -> Upload:
        with self.database.read() as session:
            row = session.get_one(table, upload_id)
        assert isinstance(row, Network | Dataset)
        return row

    def submit(
        self, do: str, *, timeout_s: int = 120, nudge: bool = True, seed: int | None = None, **metadata: str
    ) -> str:
        """A job for `children.py`, with a seed of its own, so that it resumes from no other job's checkpoint."""
        return self.submit_spec(self.spec(do, metadata, timeout_s=timeout_s, seed=seed), nudge=nudge)

    def spec(self, do: str, metadata: dict[str, str], *, timeout_s: int = 120, seed: int | None = None) -> Spec:
        return Spec.model_validate(
            {
                "model": self.network_id,
                "steps": [{"step": "prune", "amount": {"channels": 0.5}}],
                "limits": {"timeout_s": timeout_s},
                "seed": next(self._seeds) if seed is None else seed,
                "metadata": {"do": do, **metadata},
            }
        )

    def submit_spec(self, spec: Spec, *, nudge: bool = True) -> str:
        with self.database.transaction() as session:
            job = transitions.submit(
                session,
                tenant="t",
                name=None,
                network_id=spec.model,
                dataset_id=spec.data.dataset if spec.data else None,
                spec=spec,
                resolved_spec=spec,
                device="auto",
                now=now(session),
            )
        if nudge:
            self.celery.send_task(TASK_RUN_JOB, queue=queue_of("cpu"))
        return job.id

    def nudge_inspection(self) -> None:
        self.celery.send_task(TASK_INSPECT, queue=CONTROL_QUEUE)

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return session.get_one(Job, job_id)

    def wait(self, job_id: str, *statuses: JobStatus) -> Job:
        """Until it has one of `statuses`; by default, until it ended."""
        wanted = statuses or tuple(status for status in JobStatus if status.is_terminal)

        def there() -> Job | None:
            job = self.job(job_id)
            return job if job.status in wanted else None

        try:
            found = until(there, f"{job_id} to be {' or '.join(wanted)}")
        except AssertionError as error:
            log = (self.folder / "workers.log").read_text()[-8000:]
            raise AssertionError(f"{error}; it is {self.job(job_id).status}\n{log}") from None
        assert found is not None
        return found

    def cancel(self, job_id: str) -> JobStatus | None:
        with self.database.transaction() as session:
            return transitions.cancel(session, "t", job_id, now(session))

    def events(self, job_id: str) -> list[dict[str, Any]]:
        with self.database.read() as session:
            return list(session.scalars(select(Event.data).where(Event.job_id == job_id).order_by(Event.id)))

    def statuses(self, job_id: str) -> list[str]:
        return [event["status"] for event in self.events(job_id) if event["type"] == "status"]

    def log(self, job_id: str) -> str:
        text = io.StringIO()
        with self.database.read() as session:
            for piece in session.scalars(select(Log.text).where(Log.job_id == job_id).order_by(Log.id)):
                text.write(piece)
        return text.getvalue()

    def engines(self, work: Path | None = None) -> list[psutil.Process]:
        """Every process whose home is below `work`, this deployment's by default; so also an engine's children."""
        homes = f"{work or self.work}/"
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("HOME", "").startswith(homes) and process.status() != "zombie":
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def engine(self) -> psutil.Process:
        """The one engine that runs: below its guard, above its children."""

        def only() -> psutil.Process | None:
            for process in self.engines():
                with contextlib.suppress(psutil.Error):
                    parent = process.parent()
                    if parent is not None and "-I" in parent.cmdline() and "-I" not in process.cmdline():
                        return process
            return None

        found = until(only, "an engine to run")
        assert found is not None
        return found

    def runs_on_disk(self) -> list[Path]:
        return sorted(self.work.glob("worker-*/run-*"))
