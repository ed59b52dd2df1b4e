"""The processes beside this one that a training asks for: started, met, watched, and ended with it.

Each is `python -P -m worker.engine.member`: the same interpreter again, in the same sandbox. It reads the same upload,
restores a checkpoint of the network as it is now, and then runs the same step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import distributed as dist
from torch._C._distributed_c10d import FileStore

from models.errors import Code, Failure
from models.messages import CompressRequest
from models.spec import FinetuneStep, Spec
from worker.engine.checkpoint import save_checkpoint
from worker.engine.run import Run
from worker.engine.subject import Subject
from worker.engine.team import ALONE, Parted, Team

PATIENCE = timedelta(minutes=30)
"""For others in one exchange. Between two of them the first process may judge the network, or write it down."""
_TO_NOTICE_SECONDS = 10.0
"""After a process has died, until those who wait for it have heard."""
_TO_DIE_SECONDS = 2.0
_TICK_SECONDS = 0.05
PARTED_STATUS = 3
"""Of a member that only lost another."""

ON_LOOPBACK = {
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",  # it would need /dev/shm
    "NCCL_CUMEM_ENABLE": "0",  # it would need sockets that pass descriptors
}


class MemberRequest(BaseModel):
    """What a member is told. `folder` is where it meets the others; files in it are named by `Meeting`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int
    size: int
    threads: int
    request: CompressRequest
    spec: Spec
    step: FinetuneStep
    step_index: int | None


class Meeting:
    """The folder that a team shares, and what lies in it."""

    def __init__(self, folder: Path) -> None:
        self.store, self.checkpoint = folder / "store", folder / "network.safetensors"
        self._folder = folder

    def request(self, rank: int) -> Path:
        return self._folder / f"request-{rank}.json"

    def ready(self, rank: int) -> Path:
        """Is there once that process has read everything."""
        return self._folder / f"ready-{rank}"

    def failure(self, rank: int) -> Path:
        """Is there when that process could not go on: the code and the message of a `Failure`."""
        return self._folder / f"failure-{rank}.json"

    @contextmanager
    def team(self, rank: int, size: int, threads: int) -> Iterator[Team]:
        """All `size` processes in torch's default process group, with `threads` each."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        os.environ |= ON_LOOPBACK
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = FileStore(str(self.store), size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        try:
            yield Team(rank, size)
        finally:
            dist.destroy_process_group()
            torch.set_num_threads(before)


class Crew:
    """Of one job: who may be asked to train with it."""

    def __init__(self, request: CompressRequest) -> None:
        self._request = request

    @contextmanager
    def gather(self, subject: Subject, step: FinetuneStep, run: Run) -> Iterator[Team]:
        """The team that `step` asks for, this process first in it; the others end with the block.

        Raises Failure: UNSUPPORTED_HERE where there cannot be so many; ENGINE_CRASHED when one of them dies, or what it
        failed with.
        """
        size = self._size(step, run)
        if size == 1:
            yield ALONE
            return
        with ExitStack() as open_until_the_end:
            folder = Path(open_until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="team-", dir=run.folder)))
            meeting, threads = Meeting(folder), max(1, self._request.threads // size)
            save_checkpoint(subject, [], meeting.checkpoint, run.state)
            members = []
            for rank in range(1, size):
                told = MemberRequest(
                    rank=rank,
                    size=size,
                    threads=threads,
                    request=self._request,
                    spec=run.spec,
                    step=step,
                    step_index=run.step_index,
                )
                meeting.request(rank).write_text(told.model_dump_json(by_alias=True))
                members.append(open_until_the_end.enter_context(_Member(rank, meeting)))
            _wait_for(members)
            over = threading.Event()
            open_until_the_end.callback(over.set)
            threading.Thread(target=_watch, args=(members, over), name="watch-members", daemon=True).start()
            try:
                with meeting.team(0, size, threads) as team:
                    yield team
            except Parted as error:
                raise _first_failure(members) or error from error

    def _size(self, step: FinetuneStep, run: Run) -> int:
        asked, devices = step.speed.processes, torch.cuda.device_count() if run.device.type == "cuda" else 1
        if asked == "auto":
            return min(devices, step.batch_size) if self._request.talks else 1
        if asked > 1 and not self._request.talks:
            raise Failure(
                Code.UNSUPPORTED_HERE,
                f"`speed.processes` is {asked}, and this worker cannot give engines a network of their own to talk "
                "over: ask for 1, or let it have network namespaces, or set MODELPRESS_ALLOW_LOOPBACK_SOCKETS=true.",
            )
        if run.device.type == "cuda" and asked > devices:
            raise Failure(
                Code.UNSUPPORTED_HERE,
                f"`speed.processes` is {asked}, and this worker has {devices} CUDA devices, one for each process: ask "
                f'for at most {devices}, or for "auto".',
            )
        return asked


class _Member:
    """A process, from outside. It ends when its input does, and at the end of the block."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self._meeting = rank, meeting
        command = [sys.executable, "-P", "-m", "worker.engine.member", str(meeting.request(rank))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def is_ready(self) -> bool:
        return self._meeting.ready(self.rank).exists()

    def failure(self) -> Failure | None:
        """Why it is no more, if it is."""
        status = self.process.poll()
        if status in (None, 0, PARTED_STATUS):
            return None
        try:
            said = json.loads(self._meeting.failure(self.rank).read_text())
        except (FileNotFoundError, ValueError):
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            return Failure(Code.ENGINE_CRASHED, f"process {self.rank} of those that train together ended {how}")
        return Failure(Code(said["code"]), said["message"], where=said["where"])


def _wait_for(members: Sequence[_Member]) -> None:
    while not all(member.is_ready() for member in members):
        failed = next(filter(None, (member.failure() for member in members)), None)
        if failed is not None:
            raise failed
        time.sleep(_TICK_SECONDS)


def _first_failure(members: Sequence[_Member]) -> Failure | None:
    """Why an exchange broke off, if it was a member that did."""
    deadline = time.monotonic() + _TO_DIE_SECONDS
    while time.monotonic() < deadline:
        failed = next(filter(None, (member.failure() for member in members)), None)
        if failed is not None:
            return failed
        time.sleep(_TICK_SECONDS)
    return None


def _watch(members: Sequence[_Member], over: threading.Event) -> None:
    """Where nobody tells those who wait that a member is gone, as NCCL does not, end the engine rather than hang."""
    while not over.wait(_TICK_SECONDS * 10):
        failed = next(filter(None, (member.failure() for member in members)), None)
        if failed is not None and not over.wait(_TO_NOTICE_SECONDS):
            print(f"{failed.code}: {failed.message}", file=sys.stderr, flush=True)
            os._exit(70)
