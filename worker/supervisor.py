"""What every run of the engine needs, whether it compresses a network or inspects an upload."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

from models.blobs import Blobs
from models.database import Database
from models.events import EngineEvent
from models.settings import Settings
from worker.child import Child
from worker.sandbox import ProcessLimits
from worker.watch import Patience, Stop, Watch, Watched
from worker.workplace import RunFolder, Workplace

ENGINE = (sys.executable, "-P", "-m", "worker.engine")


class Supervisor:
    """Of one worker process. `draining` is set when it stops: what runs is ended and given back.

    `command` starts an engine when the path of a request is added to it.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs,
        settings: Settings,
        workplace: Workplace,
        draining: threading.Event,
        command: Sequence[str] = ENGINE,
    ) -> None:
        self.database, self.blobs, self.settings = database, blobs, settings
        self.workplace, self.draining, self.command = workplace, draining, tuple(command)

    def watch(
        self,
        folder: RunFolder,
        run_seconds: float,
        *,
        on_event: Callable[[EngineEvent], None],
        on_log: Callable[[str], None],
        must_stop: Callable[[], Stop | None],
        may_read: Callable[[], bool] = lambda: True,
    ) -> Watched:
        """Run an engine on `folder.request` to its end, in at most `run_seconds`; see `Watch`.

        Call it from a thread that stays: the engine dies with it.
        """
        settings = self.settings
        patience = Patience(run_seconds, settings.stall_seconds, settings.scaled(settings.cancel_grace_seconds))
        limits = ProcessLimits(
            cpu_seconds=int(run_seconds * settings.engine_threads) + 60,
            memory_bytes=settings.engine_memory_bytes if settings.device_class == "cpu" else None,
        )
        command = [*self.command, str(folder.request)]
        with Child(command, engine_environment(settings, folder), limits) as child:
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
