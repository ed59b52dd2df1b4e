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
from collections.abc import Callable, Iterator, Sequence
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
from models.spec_speed import Speed
from worker.engine.checkpoint import save_checkpoint
from worker.engine.run import Run
from worker.engine.subject import Subject
from worker.engine.team import ALONE, Parted, Team
from worker.engine.train.state import load_weights, weights_in

PATIENCE = timedelta(minutes=30)
"""For others in one exchange. Between two of them the first process may judge the network, or write it down."""
_TO_END_SECONDS = 15.0
"""After an exchange broke off, until every member has ended or said why."""
_TICK_SECONDS = 0.05
PARTED_STATUS = 3
"""Of a member that only lost another."""

_POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""How many threads libraries start, read as they are loaded."""
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
        return self._folder / f"failure-{rank}.json"

    def say_failure(self, rank: int, failure: Failure) -> None:
        """Why that process could not go on. What is there is whole."""
        said = {"code": failure.code, "message": failure.message, "where": failure.where}
        part = self.failure(rank).with_suffix(".part")
        part.write_text(json.dumps(said))
        part.replace(self.failure(rank))

    def said_failure(self, rank: int) -> Failure | None:
        try:
            said = json.loads(self.failure(rank).read_bytes())
        except FileNotFoundError:
            return None
        return Failure(Code(said["code"]), said["message"], where=said["where"])

    @contextmanager
    def team(self, rank: int, size: int, threads: int, speed: Speed) -> Iterator[Team]:
        """All `size` processes in torch's default process group, with `threads` each."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        os.environ |= ON_LOOPBACK
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        store = FileStore(str(self.store), size)
        try:
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        except RuntimeError as error:
            raise Parted(str(error)) from error
        try:
            yield Team(rank, size, torch.bfloat16 if speed.gradients == "bfloat16" else None)
        finally:
            dist.destroy_process_group()
            torch.set_num_threads(before)


class Crew:
    """Of one job: who may be asked to train with it.

    `give_up` is called, from another thread, where a member is gone and this process waits for it all the same, as NCCL
    lets it, `notice_seconds` after that end: to say why and end the process. Without, it waits for `PATIENCE`.
    """

    def __init__(
        self,
        request: CompressRequest,
        give_up: Callable[[Failure], None] | None = None,
        notice_seconds: float = 10.0,
    ) -> None:
        self._request, self._give_up, self._notice_seconds = request, give_up, notice_seconds

    @contextmanager
    def gather(self, subject: Subject, step: FinetuneStep, run: Run) -> Iterator[Team]:
        """The team that `step` asks for, this process first in it; the others end with the block. That there can be so
        many is for `check_machine` to see.

        Raises Failure: ENGINE_CRASHED when one of them dies, or what it failed with.
        """
        size = self._size(step, run)
        if size == 1:
            yield ALONE
            return
        with ExitStack() as open_until_the_end:
            folder = Path(open_until_the_end.enter_context(tempfile.TemporaryDirectory(prefix="team-", dir=run.folder)))
            meeting, threads = Meeting(folder), max(1, self._request.threads // size)
            if run.state is not None:  # A checkpoint has the network's weights once, as the subject's.
                load_weights(subject.graph, weights_in(run.state))
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
                members.append(open_until_the_end.enter_context(_Member(rank, meeting, threads)))
            _wait_for(members)
            over = threading.Event()
            open_until_the_end.callback(over.set)
            if self._give_up is not None:
                watching = (members, over, self._give_up, self._notice_seconds)
                threading.Thread(target=_watch, args=watching, name="watch-members", daemon=True).start()
            try:
                with meeting.team(0, size, threads, step.speed) as team:
                    yield team
            except Parted as error:
                over.set()
                raise _why(members, error) from error

    def _size(self, step: FinetuneStep, run: Run) -> int:
        asked, devices = step.speed.processes, torch.cuda.device_count() if run.device.type == "cuda" else 1
        if asked == "auto":
            return min(devices, step.batch_size) if self._request.talks else 1
        return asked


class _Member:
    """A process, from outside. It ends when its input does, and at the end of the block."""

    def __init__(self, rank: int, meeting: Meeting, threads: int) -> None:
        self.rank, self._meeting = rank, meeting
        command = [sys.executable, "-P", "-m", "worker.engine.member", str(meeting.request(rank))]
        environment = os.environ | dict.fromkeys(_POOLS, str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)

    def __enter__(self) -> _Member:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def is_ready(self) -> bool:
        return self._meeting.ready(self.rank).exists()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> Failure | None:
        return self._meeting.said_failure(self.rank)

    def crash(self) -> Failure | None:
        """How it ended, where that was neither its task nor the loss of another."""
        status = self.process.poll()
        if status in (None, 0, PARTED_STATUS):
            return None
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return Failure(Code.ENGINE_CRASHED, f"process {self.rank} of those that train together ended {how}")


def _failure(members: Sequence[_Member]) -> Failure | None:
    """Why a member is no more, if one is: first what one said, which is the cause of how others ended."""
    crashes = [member.crash() for member in members]  # asked first: what a member said is there before it ends
    return next(filter(None, [*(member.said() for member in members), *crashes]), None)


def _wait_for(members: Sequence[_Member]) -> None:
    while not all(member.is_ready() for member in members):
        if (failed := _failure(members)) is not None:
            raise failed
        time.sleep(_TICK_SECONDS)


def _why(members: Sequence[_Member], error: Parted) -> Failure:
    """What an exchange broke off for."""
    deadline = time.monotonic() + _TO_END_SECONDS
    while time.monotonic() < deadline and not all(member.has_ended() for member in members):
        if any(member.said() for member in members):
            break
        time.sleep(_TICK_SECONDS)
    unknown = Failure(Code.ENGINE_CRASHED, f"the processes that train together lost one another: {str(error)[:300]}")
    return _failure(members) or unknown


def _watch(
    members: Sequence[_Member], over: threading.Event, give_up: Callable[[Failure], None], notice_seconds: float
) -> None:
    while not over.wait(_TICK_SECONDS * 10):
        if (failed := _failure(members)) is not None and not over.wait(notice_seconds):
            give_up(failed)
            return
