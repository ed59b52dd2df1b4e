"""What an engine must not reach, and what `escapes.py` says of its tries."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.worker import escapes
from worker import sandbox
from worker.profiles import BASE, Profile
from worker.sandbox import Limits, Sandbox

PROGRAM = Path(escapes.__file__)
REFUSED = {"EPERM", "EACCES", "EXDEV"}
WORKS = {"socketpair": True, "moved": True, "own status": True, "random": True}


class Aims:
    """A run folder as a worker makes it, and things beside it that an engine must not reach."""

    def __init__(self, folder: Path) -> None:
        self.root, self.job = folder / "run", folder / "run" / "job"
        self.job.mkdir(parents=True)
        self.others = folder / "others"
        self.others.mkdir()
        for name in ("blob", "database", "outside"):
            (self.others / name).write_text(f"the {name} of others")
        # The path of a socket has room for 107 characters.
        self._short = tempfile.mkdtemp(dir="/tmp")
        self._broker = socket.socket(socket.AF_UNIX)
        self._broker.bind(f"{self._short}/broker")
        self._broker.listen()
        self._port = socket.create_server(("127.0.0.1", 0))
        aims = {name: str(self.others / name) for name in ("blob", "database", "outside")}
        self.aims = aims | {"socket": f"{self._short}/broker", "worker": str(os.getpid())}
        self.aims["port"] = str(self._port.getsockname()[1])

    def close(self) -> None:
        self._broker.close()
        self._port.close()
        shutil.rmtree(self._short)

    def command(self, do: str) -> list[str]:
        request = self.root / "request.json"
        request.write_text(json.dumps({"folder": str(self.job), "spec": {"metadata": {"do": do, **self.aims}}}))
        return [sys.executable, "-P", str(PROGRAM), str(request)]

    def run(self, do: str, profile: Profile = BASE, **changes: Any) -> dict[str, Any]:
        confined = replace(Sandbox(profile, self.root, (self.job,), Limits(cpu_seconds=60)), **changes)
        process = sandbox.start(self.command(do), {}, confined)
        _, errors = process.communicate()
        return found(errors.decode())

    def is_untouched(self) -> bool:
        names = sorted(path.name for path in self.others.iterdir())
        whole = all(path.read_text() == f"the {path.name} of others" for path in self.others.iterdir())
        return names == ["blob", "database", "outside"] and whole


def found(log: str) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(log.splitlines()[-1])
    return line
