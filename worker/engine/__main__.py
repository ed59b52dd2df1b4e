"""`python -P -m worker.engine REQUEST.json`: one request in, one JSON event a line on stdout, the log on stderr.

Exit status: 0 after `finished` or `inspected`, 1 after `failed`, 2 for a request that is not one. SIGTERM during
training has a last checkpoint written first, then status 143 and no last word; at other times it ends the process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from models.errors import Failure
from models.events import EngineEvent, FailedEvent, InspectedEvent
from models.messages import (
    ENGINE_REQUEST,
    CompressRequest,
    EngineRequest,
    InspectDatasetRequest,
    InspectNetworkRequest,
)
from worker.engine.data.inspect import inspect_dataset
from worker.engine.failures import as_failure
from worker.engine.inspect import inspect_network
from worker.engine.interrupts import Stopped
from worker.engine.pipeline import compress


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -P -m worker.engine REQUEST.json", file=sys.stderr)
        return 2
    try:
        request = _read(Path(arguments[0]))
    except (OSError, ValueError, ValidationError) as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 2
    emit = _open_pipe()
    gc.freeze()  # what was imported stays, and need not be looked at again
    last_phase: list[str] = []

    def remember(event: EngineEvent) -> None:
        if event.type == "phase":
            last_phase[:] = [event.phase]
            _give_memory_back()
        emit(event)

    def say(failure: Failure) -> None:
        emit(FailedEvent(error=failure.as_error(last_phase[0] if last_phase else None)))

    def give_up(failure: Failure) -> None:
        say(failure)
        os._exit(1)

    try:
        _serve(request, remember, give_up)
    except Stopped:
        return 128 + signal.SIGTERM
    except Exception as error:
        traceback.print_exc()
        say(as_failure(error))
        return 1
    return 0


def _give_memory_back() -> None:
    """What the phase before has left: networks die in cycles of references, and glibc keeps pages that were freed."""
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def _read(path: Path) -> EngineRequest:
    body = json.loads(path.read_bytes())
    if isinstance(body, dict):
        body.setdefault("kind", "compress")
    return ENGINE_REQUEST.validate_python(body)


def _open_pipe() -> Callable[[EngineEvent], None]:
    """Events get the real stdout to themselves; whatever a library prints goes to the log."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: EngineEvent) -> None:
        pipe.write(event.model_dump_json() + "\n")
        pipe.flush()

    return emit


def _serve(request: EngineRequest, emit: Callable[[EngineEvent], None], give_up: Callable[[Failure], None]) -> None:
    match request:
        case InspectNetworkRequest():
            emit(InspectedEvent(inspection=inspect_network(request.network.path, request.network.read)))
        case InspectDatasetRequest():
            emit(InspectedEvent(inspection=inspect_dataset(request.dataset.path)))
        case CompressRequest():
            compress(request, emit, give_up)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
