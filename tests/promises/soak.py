"""`make soak`: random faults, one after the other, over small jobs on PostgreSQL and Valkey with several workers.

Clients submit, cancel now and then, and follow each job to its end over HTTP, whatever dies meanwhile. In the end every
acknowledged job must have ended once, as its client saw it, and nobody's retry may have made a second one.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import func, select

from models.statuses import TERMINAL, JobStatus
from models.tables import Job
from tests.promises.outcome import Outcome
from tests.promises.place import WORKER, Place
from tests.promises.submitting import acknowledged, answered

SCALE = 0.05
CLIENTS, DEVICES, CONTROLS = 6, 3, 2
CANCELLED_SHARE = 0.15
OUTAGE_SECONDS = 2 * 30 * SCALE
"""Two leases."""
STOP_SECONDS = 60.0
LAST_SECONDS = 180.0
"""In which what is still open at the end has to come to its end."""


class Soak:
    def __init__(self, place: Place, seed: int) -> None:
        self.place, self.chance = place, random.Random(seed)
        self.outcome, self.stop = Outcome(), threading.Event()
        self.seen: dict[str, str] = {}
        """How each acknowledged job ended, as its client saw it."""
        self.cancelled: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.workers: dict[str, list[subprocess.Popen[bytes]]] = {"device": [], "control": []}

    def run(self, seconds: float) -> None:
        self.place.serve()
        for kind, count in (("control", CONTROLS), ("device", DEVICES)):
            for _ in range(count):
                self._start(kind)
        ends = time.monotonic() + seconds
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._client, number) for number in range(CLIENTS)]
            try:
                while time.monotonic() < ends:
                    time.sleep(self.chance.uniform(0.2, 2.0))
                    fault = self.chance.choice(list(FAULTS))
                    FAULTS[fault](self)
                    self.counts[fault] += 1
                    self.outcome.injections += 1
            finally:
                self.stop.set()
            for client in clients:
                client.result()
        self._account()

    def _account(self) -> None:
        jobs = list(self.seen)
        self.place.account(self.outcome, [job for job in jobs if job not in self.cancelled])
        self.place.account(self.outcome, list(self.cancelled), JobStatus.CANCELLED, JobStatus.SUCCEEDED)
        with self.place.fleet.database.read() as session:
            made = session.scalar(select(func.count()).select_from(Job)) or 0
            now = {row.id: row.status for row in session.scalars(select(Job))}
        self.outcome.duplicated += made - len(jobs)
        changed = [job for job, status in self.seen.items() if now[job] != status]
        self.outcome.require(not changed, f"{len(changed)} ended otherwise than their clients saw: {changed[:5]}")

    def _client(self, number: int) -> None:
        """One job after the other: submit, perhaps cancel, follow to the end."""
        chance = random.Random(1000 + number)
        with httpx.Client(base_url=self.place.url, timeout=10, trust_env=False) as client:
            turn = 0
            while not self.stop.is_set():
                turn += 1
                seed = 1_000_000 * (number + 1) + turn
                work = f"{chance.choice((0, 0, 0.2, 1.0)):g}"
                document = self.place.document(seed, do="finish", work=work, key=self.place.key(seed))
                job = acknowledged(client, document, f"soak-{seed}")
                if chance.random() < CANCELLED_SHARE:
                    time.sleep(chance.uniform(0, 1))
                    self.cancelled.add(job)
                    answered(client, "POST", f"/jobs/{job}/cancel", final=[409])  # it may have ended
                self.seen[job] = self._followed(client, job)

    def _followed(self, client: httpx.Client, job: str) -> str:
        patience = None
        while True:
            status: str = answered(client, "GET", f"/jobs/{job}?wait=5").json()["status"]
            if status in TERMINAL:
                return status
            if self.stop.is_set():
                patience = patience or time.monotonic() + LAST_SECONDS
                if time.monotonic() > patience:
                    return status

    def _start(self, kind: str) -> None:
        self.workers[kind].append(self.place.fleet.start(kind, program=WORKER))

    def _one(self, kind: str) -> subprocess.Popen[bytes]:
        return self.chance.choice(self.workers[kind])

    def replace(self, kind: str, with_signal: int) -> None:
        """End a worker and start another; told to stop, it has to end well."""
        worker = self._one(kind)
        worker.send_signal(with_signal)
        status = worker.wait(timeout=STOP_SECONDS)
        if with_signal == signal.SIGTERM:
            self.outcome.require(status == 0, f"a {kind} worker that was told to stop ended with {status}")
        self.workers[kind].remove(worker)
        self._start(kind)

    def sleep(self, kind: str) -> None:
        """A worker stops for two leases, and wakes."""
        worker = self._one(kind)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(OUTAGE_SECONDS)
        worker.send_signal(signal.SIGCONT)

    def kill_an_engine(self) -> None:
        for process in self.place.fleet.engines():
            try:
                if "-I" in process.cmdline():
                    continue  # the guard above it
                process.kill()
            except psutil.Error:
                continue
            return

    def kill_the_api(self) -> None:
        self.place.kill_api()
        self.place.wait_for_life()

    def empty_the_broker(self) -> None:
        self.place.valkey.stop(signal.SIGKILL)
        self.place.valkey.start()

    def hang_the_broker(self) -> None:
        self.place.valkey.pause()
        time.sleep(OUTAGE_SECONDS)
        self.place.valkey.resume()

    def restart_the_database(self) -> None:
        self.place.postgres.stop(signal.SIGINT)
        time.sleep(self.chance.uniform(0, OUTAGE_SECONDS))
        self.place.postgres.start()


FAULTS: dict[str, Callable[[Soak], None]] = {
    "api killed": Soak.kill_the_api,
    "engine killed": Soak.kill_an_engine,
    "device worker killed": lambda soak: soak.replace("device", signal.SIGKILL),
    "device worker told to stop": lambda soak: soak.replace("device", signal.SIGTERM),
    "device worker stopped for two leases": lambda soak: soak.sleep("device"),
    "control worker killed": lambda soak: soak.replace("control", signal.SIGKILL),
    "control worker told to stop": lambda soak: soak.replace("control", signal.SIGTERM),
    "broker flushed": lambda soak: soak.place.valkey.flush(),
    "broker restarted empty": Soak.empty_the_broker,
    "broker hung for two leases": Soak.hang_the_broker,
    "database restarted": Soak.restart_the_database,
}


def soak(seconds: float, seed: int = 0) -> Soak:
    with Place(SCALE, on_postgres=True, MODELPRESS_MAX_STRIKES="1000") as place:
        ran = Soak(place, seed)
        ran.run(seconds)
    return ran


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.promises.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0, help="of the faults and when they come")
    chosen = parser.parse_args()
    ran = soak(60 * chosen.minutes, chosen.seed)
    found = ran.outcome
    table = Table(title=f"{chosen.minutes:g} minutes, clocks {1 / SCALE:g} times as fast, seed {chosen.seed}")
    table.add_column("fault")
    table.add_column("times", justify="right")
    for name in FAULTS:
        table.add_row(name, str(ran.counts[name]))
    console = Console(highlight=False)
    console.print(table)
    ends = Counter(ran.seen.values())
    console.print(f"{len(ran.seen)} jobs: {', '.join(f'{count} {status}' for status, count in sorted(ends.items()))}")
    console.print(f"lost {found.lost}, done twice {found.duplicated}")
    for problem in found.broken:
        console.print(f"not as promised: {problem}")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
