"""The embedded service for as long as a block of code needs it: for the demo and the benchmarks."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ServiceFailed(Exception):
    """The service did not start, or did not stop cleanly; the message has what it said."""


@contextmanager
def temporary_service(folder: Path) -> Iterator[str]:
    """Start it on a free port with its data in `folder`, yield its URL, stop it.

    Settings come from nowhere but here: `MODELPRESS_*` of this process do not reach it. It ends with this process.
    Raises ServiceFailed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELPRESS_")}
    parent = os.getpid()

    def die_with_parent() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "deploy.embedded", "--port", "0", "--data", str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            if "modelpress is up: " in line:
                break
        else:
            raise ServiceFailed(f"The service did not start:\n{''.join(said)}")
        yield said[-1].partition("modelpress is up: ")[2].split()[0]
    finally:
        process.terminate()
        try:
            rest, _ = process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            rest, _ = process.communicate()
    if process.returncode != 0:
        raise ServiceFailed(f"The service ended with {process.returncode}:\n{rest}")
