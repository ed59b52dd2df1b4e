"""Where a row runs: a deployment of its own, with what the faults of this table need beyond `Fleet`."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from sqlalchemy import func, select

from api.auth import create_key
from models.checkpoints import checkpoint_key
from models.database import migrate
from models.settings import Settings
from models.spec import Spec
from models.statuses import TERMINAL, JobStatus
from models.tables import Event, Job, Network
from tests.api.serving import Api, served
from tests.api.stories import NETWORK
from tests.promises.outcome import Outcome
from tests.services import Postgres, Valkey
from tests.worker.fleet import Fleet, until

WORKER = "tests.promises.quick_worker"


class Place:
    """Use as a context. `scale` shrinks heartbeat (5 s), lease (30 s), sweep (5 s) and grace (10 s)."""

    def __init__(
        self, scale: float, *, on_postgres: bool = False, disk_megabytes: int | None = None, **environment: str
    ) -> None:
        self.scale = scale
        self._stack = contextlib.ExitStack()
        self._on_postgres, self._environment = on_postgres, environment
        self._disk_megabytes = disk_megabytes
        self._api: subprocess.Popen[str] | None = None
        self._life = 0
        self._seeds = itertools.count(1)

    def __enter__(self) -> Place:
        stack = self._stack.__enter__()
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="promise-")))
        self.valkey = Valkey()
        stack.callback(self.valkey.close)
        if self._on_postgres:
            self.postgres = Postgres()
            stack.callback(self.postgres.close)
            self.postgres.create("promises")
            self.url_of_database = self.postgres.url("promises")
        else:
            self.url_of_database = f"sqlite:///{self.folder / 'modelpress.sqlite3'}"
        migrate(self.url_of_database)
        if self._disk_megabytes is not None:
            stack.enter_context(small_disk(self.folder / "blobs", self._disk_megabytes))
        clocks = {"MODELPRESS_CLOCK_SCALE": str(self.scale), **self._environment}
        self.fleet = stack.enter_context(Fleet(self.folder, self.url_of_database, self.valkey, **clocks))
        with self.fleet.database.transaction() as session:
            network = session.get_one(Network, self.fleet.network_id)
            network.inspection, network.tenant = NETWORK.model_dump(mode="json"), "t"
            self.network_sha256 = network.sha256
        return self

    def __exit__(self, *problem: Any) -> None:
        if self._api is not None:
            self._api.kill()
            self._api.wait()
        self._stack.__exit__(*problem)

    def workers(self, devices: int = 1, control: bool = True) -> None:
        kinds = ["control"] * control + ["device"] * devices
        wanted = len(self.fleet.registered()) + len(kinds)
        with ThreadPoolExecutor(len(kinds)) as pool:
            list(pool.map(lambda kind: self.fleet.start(kind, program=WORKER), kinds))
        until(lambda: len(self.fleet.registered()) >= wanted, "all workers to register")

    def keys(self, *tenants: str) -> list[str]:
        """A new key for each."""
        with self.fleet.database.transaction() as session:
            return [create_key(session, tenant, "a key") for tenant in tenants]

    def submit(
        self,
        do: str,
        *,
        seed: int | None = None,
        timeout_s: int = 120,
        fields: Mapping[str, Any] = MappingProxyType({}),
        **metadata: str,
    ) -> str:
        """A job for `quick_engine.py`, with `fields` of its spec. Without a seed that another has, it goes on from no
        other's checkpoint."""
        document = self.document(next(self._seeds) if seed is None else seed, do=do, **metadata)
        document |= {"limits": {"timeout_s": timeout_s}, **fields}
        return self.fleet.submit_spec(Spec.model_validate(document))

    def key(self, seed: int) -> str:
        """Of the one checkpoint that a job with this seed has."""
        spec = Spec.model_validate(self.document(seed))
        return checkpoint_key(self.network_sha256, None, spec, 0)

    def document(self, seed: int = 0, **metadata: str) -> dict[str, Any]:
        """A job, as a client sends it."""
        step = {"step": "prune", "amount": {"channels": 0.5}}
        return {"model": self.fleet.network_id, "steps": [step], "seed": seed, "metadata": metadata}

    def serve(self) -> str:
        """Start the api; its URL. `kill_api` ends one life, and the next begins by itself."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        log = self._stack.enter_context((self.folder / "api.log").open("ab"))
        self._api = subprocess.Popen(
            [sys.executable, "-m", "tests.promises.lives"],
            env=self._api_environment | {"MODELPRESS_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.url = f"http://127.0.0.1:{port}"
        self.wait_for_life()
        return self.url

    def share(self, address: socket.socket) -> subprocess.Popen[bytes]:
        """Start one more api that accepts from the listening socket `address`."""
        with (self.folder / "api.log").open("ab") as log:
            api = subprocess.Popen(
                [sys.executable, "-m", "tests.promises.shared_api", str(address.fileno())],
                env=self._api_environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[address.fileno()],
            )
        self._stack.callback(api.wait)
        self._stack.callback(api.kill)
        return api

    @property
    def _api_environment(self) -> dict[str, str]:
        return {**self.fleet.environment, "MODELPRESS_OPEN_ACCESS": "true", "MODELPRESS_TENANT": "t"}

    def served(self, **settings: Any) -> Api:
        """The api in a thread of this process, where a row asks what it answers, and not how it dies."""
        chosen = Settings(
            database_url=self.url_of_database,
            broker_url=self.valkey.url,
            blobs=str(self.folder / "blobs"),
            work=self.fleet.work,
            max_requests_per_second=None,
            **settings,
        )
        return self._stack.enter_context(served(chosen))

    def wait_for_life(self) -> None:
        assert self._api is not None
        assert self._api.stdout is not None
        self._life = int(self._api.stdout.readline())
        until(self._answers, "the api to answer")

    def kill_api(self) -> None:
        os.kill(self._life, signal.SIGKILL)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def staged(self) -> Iterator[Path]:
        """What is being written to the blob store, or was and stayed."""
        return (path for path in (self.folder / "blobs" / "staging").iterdir() if path.name != ".lock")

    def moments(self, job_id: str) -> list[tuple[str, int, float]]:
        """(status, attempt, seconds since 1970) of every change of a job's status."""
        with self.fleet.database.read() as session:
            rows = session.execute(
                select(Event.data, Event.attempt, Event.at).where(Event.job_id == job_id).order_by(Event.id)
            ).all()
        return [(data["status"], attempt, at.timestamp()) for data, attempt, at in rows if data["type"] == "status"]

    def started(self, job_id: str, attempt: int = 1) -> float:
        """When this attempt was claimed."""
        moments = self.moments(job_id)
        starts = [at for status, number, at in moments if (status, number) == ("running", attempt)]
        assert starts, f"attempt {attempt} never ran: {moments}"
        return starts[0]

    def died(self, job_id: str) -> list[float]:
        """When engines of this job said that they die."""
        return [float(line.split()[1]) for line in self.fleet.log(job_id).splitlines() if line.startswith("dies ")]

    def account(self, outcome: Outcome, jobs: list[str], *ends: JobStatus, patience: float = 60) -> None:
        """Every one of `jobs` came to one of `ends` (succeeded by default), once, and no attempt wrote after the next
        had begun."""
        wanted = ends or (JobStatus.SUCCEEDED,)

        def waiting() -> int:
            with self.fleet.database.read() as session:
                open_jobs = select(func.count()).where(Job.id.in_(jobs), Job.status.not_in(TERMINAL))
                return session.scalar(open_jobs) or 0

        deadline = time.monotonic() + patience + len(jobs)
        while waiting() and time.monotonic() < deadline:
            time.sleep(0.05)
        with self.fleet.database.read() as session:
            found = {job.id: job.status for job in session.scalars(select(Job).where(Job.id.in_(jobs)))}
            events = session.execute(
                select(Event.job_id, Event.attempt, Event.data).where(Event.job_id.in_(jobs)).order_by(Event.id)
            ).all()
        outcome.lost += sum(found.get(job_id) not in wanted for job_id in jobs)
        ended = dict.fromkeys(jobs, 0)
        newest = dict.fromkeys(jobs, 0)
        stale: set[str] = set()
        for job_id, attempt, data in events:
            if data["type"] == "status" and data["status"] in TERMINAL:
                ended[job_id] += 1
            if attempt < newest[job_id]:
                stale.add(job_id)
            newest[job_id] = max(newest[job_id], attempt)
        outcome.duplicated += sum(count > 1 or job_id in stale for job_id, count in ended.items())


@contextlib.contextmanager
def full_disk(folder: Path, keep_bytes: int) -> Iterator[None]:
    """A file that takes all but `keep_bytes` of the file system of `folder`, while the block runs."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file:
            while (room := shutil.disk_usage(folder).free - keep_bytes) > 0:
                with contextlib.suppress(OSError):  # somebody else writes, so there was less room after all
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, room)
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size in memory, mounted at `folder`. Needs the right to mount."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "modelpress", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
