"""Engines of every temper, to test how a worker treats them. `python children.py REQUEST.json`, as the real one.

What to do is the job's `metadata`: `do` names a function below, and the file `gate`, where given, is waited for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from models.checkpoints import checkpoint_key
from models.report import Measurement, Provenance, Report
from models.spec import Spec


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Engine:
    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.folder = Path(request["folder"])
        self.metadata: dict[str, str] = request["spec"]["metadata"]
        (self.folder / "artifacts").mkdir()

    def begin(self) -> None:
        say(type="phase", phase="pruning", step_index=0, step_count=1)
        say(type="progress", percent=10.0)

    def wait_for_gate(self) -> None:
        """Go on once the test says so; speak all the while."""
        gate = self.metadata.get("gate")
        while gate and not Path(gate).exists():
            say(type="progress", percent=20.0)
            time.sleep(0.02)

    def checkpoint(self) -> None:
        (self.folder / "step0.safetensors").write_bytes(b"the state after a step")
        spec = Spec.model_validate(self.request["spec"])
        dataset = self.request["dataset"]
        key = checkpoint_key(self.request["network"]["sha256"], dataset and dataset["sha256"], spec, 0)
        say(type="checkpoint", step_index=0, path="step0.safetensors", key=key)

    def artifact(self, name: str = "model.onnx", content: bytes = b"a small network") -> None:
        (self.folder / "artifacts" / name).write_bytes(content)
        path = f"artifacts/{name}"
        say(type="artifact", name=name, kind="onnx", content_type="application/octet-stream", path=path)

    def end(self) -> None:
        measured = Measurement(parameters=10, nonzero_parameters=10, macs=100)
        report = Report(
            original=measured,
            compressed=measured,
            files=[],
            steps=[],
            layers=[],
            verification=[],
            mask_check=None,
            split_made_here=False,
            warnings=[],
            seconds={},
            provenance=Provenance(
                versions={},
                device="cpu",
                seed=0,
                model_sha256=self.request["network"]["sha256"],
                dataset_sha256=None,
                spec_sha256="0" * 64,
            ),
        )
        (self.folder / "artifacts" / "report.json").write_text(report.model_dump_json())
        say(type="finished", report="artifacts/report.json")

    def finish(self) -> None:
        """A good engine: a step, its checkpoint, an artifact, the report. It resumes when it can."""
        print("the log of a good engine", file=sys.stderr, flush=True)
        self.begin()
        if self.request["checkpoints"]:
            content = Path(self.request["checkpoints"][0]).read_bytes()
            print(f"resumed from {content!r}", file=sys.stderr, flush=True)
        else:
            self.checkpoint()
        self.wait_for_gate()
        self.artifact()
        self.end()

    def show_surroundings(self) -> None:
        """Tell, in the log, all that it can see of its process."""
        files = [fd for fd in range(3, 4096) if os.path.exists(f"/proc/self/fd/{fd}")]
        status = Path("/proc/self/status").read_text()
        seen = {
            "environment": dict(os.environ),
            "files": files,
            "folder": os.getcwd(),
            "session": os.getsid(0),
            "no_new_privileges": "NoNewPrivs:\t1" in status,
            "limits": Path("/proc/self/limits").read_text(),
        }
        print(json.dumps(seen), file=sys.stderr, flush=True)
        time.sleep(60)

    def die(self) -> None:
        """By the signal in `signal`, after an artifact."""
        self.begin()
        self.artifact()
        held = bytearray(64 << 20)
        os.kill(os.getpid(), int(self.metadata["signal"]) if held else 0)
        time.sleep(60)

    def die_once(self) -> None:
        """As a crash that another attempt does not meet."""
        if not self.request["checkpoints"]:
            self.checkpoint()
            time.sleep(float(self.metadata.get("pause", "0")))
            os.kill(os.getpid(), signal.SIGSEGV)
        self.finish()

    def leave(self) -> None:
        """End well, without a last word."""
        self.begin()

    def babble(self) -> None:
        self.begin()
        print("this is no event", flush=True)
        time.sleep(60)

    def shout(self) -> None:
        """A line with no end."""
        while True:
            sys.stdout.write("x" * (1 << 20))

    def go_on(self) -> None:
        """Speak after the last word."""
        self.end()
        say(type="progress", percent=100.0)
        time.sleep(60)

    def linger(self) -> None:
        """Say the last word and stay."""
        self.artifact()
        self.end()
        time.sleep(60)

    def hang(self) -> None:
        self.begin()
        time.sleep(60)

    def spin(self) -> None:
        """Speak for ever."""
        while True:
            say(type="progress", percent=1.0)
            time.sleep(0.02)

    def defy(self) -> None:
        """Ignore TERM, with children that left the session and ignore it too; their ids are in the log."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(120)"
        for new_session in (True, False):
            child = subprocess.Popen([sys.executable, "-S", "-c", stubborn], start_new_session=new_session)
            print(f"child {child.pid}", file=sys.stderr, flush=True)
        self.begin()
        self.spin()

    def smuggle(self) -> None:
        """Name as an artifact what is none: `what` says which trick."""
        place = self.folder / "artifacts" / "x"
        path = "artifacts/x"
        match self.metadata["what"]:
            case "symlink":
                place.symlink_to("/etc/passwd")
            case "fifo":
                os.mkfifo(place)
            case "hardlink":
                (self.folder / "other").write_bytes(b"bytes")
                os.link(self.folder / "other", place)
            case "folder":
                place.mkdir()
            case "linked folder":
                place.symlink_to("/etc")
                path = "artifacts/x/passwd"
            case "outside":
                path = "../request.json"
            case "absolute":
                path = "/etc/passwd"
            case "missing":
                pass
        say(type="artifact", name="x", kind="onnx", content_type="text/plain", path=path)
        time.sleep(60)

    def lock_up(self) -> None:
        """Leave folders nobody may enter."""
        (self.folder / "closed").mkdir()
        (self.folder / "closed" / "deep").mkdir(mode=0)
        self.end()

    def misreport(self) -> None:
        (self.folder / "report.json").write_text('{"original": 1}')
        say(type="finished", report="report.json")


def inspect(request: dict[str, Any]) -> None:
    """An upload is good, bad or deadly by its first word."""
    word = Path((request.get("network") or request["dataset"])["path"]).read_text().split()[0]
    hint = "see the docs"
    if word == "bad":
        say(type="failed", error={"code": "network_rejected", "message": "it is bad", "hint": hint})
        sys.exit(1)
    if word == "deadly":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "slow":
        time.sleep(60)
    if request["kind"] == "inspect_network" and word != "confused":
        tensors = [{"name": "x", "dtype": "float32", "shape": [None, 4]}]
        say(
            type="inspected",
            inspection={
                "kind": "network",
                "format": "pt2",
                "inputs": tensors,
                "outputs": tensors,
                "parameters": 10,
                "macs": 100,
                "layers": [],
                "groups": [],
            },
        )
    else:
        say(
            type="inspected",
            inspection={"kind": "dataset", "format": "npz", "samples": 3, "inputs": [], "labels": None},
        )


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_bytes())
    if request["kind"] == "compress":
        engine = Engine(request)
        getattr(engine, engine.metadata["do"])()
    else:
        inspect(request)


if __name__ == "__main__":
    main()
