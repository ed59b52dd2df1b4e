"""What is done on this machine, without HTTP: `check` reads a file as the engine does, `operate` is for operators."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from modelpress.outcomes import ModelpressError, PrepareError, describe_error
from modelpress.types import Json
from modelpress.weights_folder import as_one_file


def check(
    path: str | Path,
    input_shape: Sequence[str] = (),
    arch: str | None = None,
    num_classes: int | None = None,
    *,
    data: bool = False,
) -> Json:
    """What the service would find in a network's file: format, inputs, outputs, layers, groups, warnings; or, with
    `data`, in a data set's: format, samples, inputs, labels, splits, warnings.

    `input_shape`, `arch` and `num_classes` are those of `Client().models.upload`.

    The reader runs in a process of its own and needs the engine: `pip install 'modelpress[worker]'`.
    Raises PrepareError when the service would refuse the file, ModelpressError when the engine is not installed.
    """
    if not Path(path).exists():
        raise PrepareError(f"There is no file {path}.")
    if data:
        file = Path(path).resolve()
        return _check(file, {"kind": "inspect_dataset", "dataset": {"path": str(file)}})
    with as_one_file(path) as file:
        read = {"input_shape": list(input_shape), "arch": arch, "num_classes": num_classes}
        return _check(file, {"kind": "inspect_network", "network": {"path": str(file.resolve()), "read": read}})


def _check(file: Path, wanted: Json) -> Json:
    with tempfile.TemporaryDirectory(prefix="modelpress-check-") as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps(wanted))
        # -P: a folder `models` or `worker` where the person stands must not hide the engine's.
        done = subprocess.run(
            [sys.executable, "-P", "-m", "worker.engine", str(request)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    for event in reversed(_events(done.stdout)):
        if event.get("type") == "inspected" and isinstance(event.get("inspection"), dict):
            inspection: Json = event["inspection"]
            return inspection
        if event.get("type") == "failed":
            raise PrepareError(f"{file.name}: {describe_error(event.get('error'))}")
    if "No module named" in done.stderr:
        missing = done.stderr.strip().splitlines()[-1]
        raise ModelpressError(f"check needs the engine: `pip install 'modelpress[worker]'` ({missing}).")
    raise ModelpressError(f"The engine ended with status {done.returncode}: {done.stderr.strip()[-600:]}")


def operate(words: Sequence[str]) -> int:
    """A command for operators, done by the service's own program with its `MODELPRESS_*` settings; the exit status.

    Raises ModelpressError when the service is not installed here.
    """
    command = [sys.executable, "-P", "-m", "api", *words]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if "No module named" in done.stderr:
        missing = done.stderr.strip().splitlines()[-1]
        raise ModelpressError(f"{words[0]} needs the service: `pip install 'modelpress[api]'` ({missing}).")
    sys.stderr.write(done.stderr)
    return done.returncode


def _events(output: str) -> list[Json]:
    events = []
    for line in output.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
