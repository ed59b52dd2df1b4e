"""What every run of the engine needs, whether it compresses a network or inspects an upload."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence

from models.blobs import Blobs
from models.database import Database
from models.events import EngineEvent
from models.settings import Settings
from models.spec import Spec
from models.spec_train import may_compile, team_size
from worker.child import Child
from worker.machine import memory_bytes
from worker.profiles import BASE, COMPILE, COMPILE_CUDA, CUDA, DDP, DDP_CUDA, Profile
from worker.sandbox import Limits, Sandbox, has_networks
from worker.watch import Patience, Stop, Watch, Watched
from worker.workplace import RunFolder, Workplace

MEMORY_SHARE = 0.75
"""Of the machine, for all engines of one worker, where no setting says otherwise."""
_TASKS, _TASKS_PER_THREAD = 192, 8
"""Processes and threads of one engine, as often as there are processes that train together: libraries keep several
pools, each of as many threads as it was told."""

ENGINE = (sys.executable, "-P", "-m", "worker.engine")


class Supervisor:
    """Of one worker process. `draining` is set when it stops: what runs is ended and given back.

    `command` starts an engine when the path of a request is added to it; `at_once` engines may run at the same time.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        settings: Settings,
        workplace: Workplace,
        draining: threading.Event,
        command: Sequence[str] = ENGINE,
        at_once: int = 1,
    ) -> None:
        self.database, self.blobs, self.settings = database, blobs, settings
        self.workplace, self.draining, self.command = workplace, draining, tuple(command)
        self.at_once = at_once

    def profile(self, spec: Spec) -> Profile:
        """What an engine may reach that runs this job. One that cannot talk to itself says so, should it have to."""
        on_cuda = self.settings.device_class == "cuda"
        devices = len((self.settings.gpus or "0").split(",")) if on_cuda else 1
        size = team_size(spec.steps or (), devices)
        if size > 1 and (has_networks() or self.settings.allow_shared_network):
            return (DDP_CUDA if on_cuda else DDP).for_team(size)
        if may_compile(spec.steps or ()):
            return COMPILE_CUDA if on_cuda else COMPILE
        return CUDA if on_cuda else BASE

    def watch(
        self,
        folder: RunFolder,
        run_seconds: float,
        profile: Profile,
        *,
        on_event: Callable[[EngineEvent], None],
        on_log: Callable[[str], None],
        must_stop: Callable[[], Stop | None],
        may_read: Callable[[], bool] = lambda: True,
    ) -> Watched:
        """Run an engine on `folder.request` to its end, in at most `run_seconds`, confined to `profile`; see `Watch`.

        Call it from a thread that stays: the engine dies with it.
        """
        settings = self.settings
        patience = Patience(run_seconds, settings.stall_seconds, settings.scaled(settings.cancel_grace_seconds))
        limits = Limits(
            # Threads that compute, and those that read batches for them, of which CPUs are the limit.
            cpu_seconds=int(run_seconds * (settings.engine_threads + len(os.sched_getaffinity(0)))) + 60,
            memory_bytes=settings.engine_memory_bytes or int(memory_bytes() * MEMORY_SHARE / self.at_once),
            disk_bytes=settings.engine_disk_bytes,
            tasks=(_TASKS + _TASKS_PER_THREAD * settings.engine_threads) * profile.team,
        )
        shares = profile.network and not has_networks()
        sandbox = Sandbox(profile, folder.root, (folder.job, folder.scratch), limits, shares_network=shares)
        command = [*self.command, str(folder.request)]
        with Child(command, engine_environment(settings, folder), sandbox) as child:
            return Watch(
                child, patience, on_event=on_event, on_log=on_log, must_stop=must_stop, may_read=may_read
            ).run()


def engine_environment(settings: Settings, folder: RunFolder) -> dict[str, str]:
    """All the environment an engine has: no secrets, no PATH, one place for scratch files."""
    threads = str(settings.engine_threads)
    return {
        "HOME": str(folder.scratch),
        "TMPDIR": str(folder.scratch),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": (settings.gpus or "0") if settings.device_class == "cuda" else "",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
    }
