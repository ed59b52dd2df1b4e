"""`python -P -m worker.engine.member REQUEST.json`: a process that trains together with an engine, and says nothing.

It ends when its standard input does, so never outlives the engine that started it. Exit status: 0 when the training has
ended, `PARTED_STATUS` when it lost the others, 1 when it could not go on; why is then in a file, and in the log.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from worker.engine.checkpoint import restore_checkpoint
from worker.engine.crew import PARTED_STATUS, Meeting, MemberRequest
from worker.engine.data.dataset import open_dataset
from worker.engine.failures import as_failure
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network
from worker.engine.run import Run
from worker.engine.team import Parted, Team
from worker.engine.train.step import run as finetune


def main(arguments: list[str]) -> int:
    # Whoever stops an engine tells its whole group; the first of the team keeps the state, and then ends this process.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_input, daemon=True).start()
    path = Path(arguments[0])
    told, meeting = MemberRequest.model_validate_json(path.read_bytes()), Meeting(path.parent)
    try:
        _train(told, meeting)
    except Parted:
        traceback.print_exc()
        return PARTED_STATUS
    except Exception as error:
        traceback.print_exc()
        failure = as_failure(error)
        meeting.say_failure(told.rank, failure)
        return 1
    return 0


def _train(told: MemberRequest, meeting: Meeting) -> None:
    request, spec = told.request, told.spec
    device = torch.device(request.device, told.rank) if request.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    subject = lift(read_network(request.network.path, request.network.read))
    _, state = restore_checkpoint(subject, meeting.checkpoint)
    teachers = {each: lift(read_network(file.path, file.read)).original for each, file in request.teachers.items()}
    run = Run(spec, request.folder, lambda event: None, device, teachers=teachers, step_index=told.step_index)
    run.state = state
    if request.dataset is not None and spec.data is not None:
        run.data = open_dataset(request.dataset.path, spec.data, subject.inputs, spec.seed)

    @contextmanager
    def gather(*_: object) -> Iterator[Team]:
        with meeting.team(told.rank, told.size, told.threads, told.step.speed) as team:
            yield team

    run.gather = gather
    meeting.ready(told.rank).touch()
    finetune(subject, told.step, run)


def _end_with_input() -> None:
    # Not by way of `sys.stdin`: a thread that holds its lock aborts a process that ends by itself.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
