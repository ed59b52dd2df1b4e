"""An engine that does nothing but what a fault needs, and starts in a moment: the standard library alone.

`python -I -S quick_engine.py REQUEST.json`. The job's `metadata` says in `do` what to do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

PHASES = ("inspecting", "baseline", "pruning", "finetuning", "quantizing", "exporting", "verifying", "measuring")


def say(**event: Any) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Engine:
    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.folder = request, str(request["folder"])
        self.metadata: dict[str, str] = request["spec"]["metadata"]
        os.makedirs(f"{self.folder}/artifacts", exist_ok=True)

    def phase(self, name: str) -> None:
        say(type="phase", phase=name, step_index=0, step_count=1)

    def checkpoint(self) -> None:
        size = int(self.metadata.get("checkpoint_bytes", "20"))
        with open(f"{self.folder}/step0.safetensors", "wb") as file:
            file.write(os.urandom(size))
        say(type="checkpoint", step_index=0, path="step0.safetensors", key=self.metadata["key"])

    def end(self) -> None:
        with open(f"{self.folder}/artifacts/model.onnx", "wb") as file:
            file.write(os.urandom(int(self.metadata.get("artifact_bytes", "20"))))
        say(
            type="artifact",
            name="model.onnx",
            kind="onnx",
            content_type="application/octet-stream",
            path="artifacts/model.onnx",
        )
        measured = {"parameters": 1, "nonzero_parameters": 1, "macs": 1}
        provenance = {"versions": {}, "device": "cpu", "seed": 0, "model_sha256": "0" * 64}
        report: dict[str, Any] = {
            "original": measured,
            "compressed": measured,
            "files": [],
            "steps": [],
            "layers": [],
            "verification": [],
            "mask_check": None,
            "split_made_here": False,
            "warnings": [],
            "seconds": {},
            "provenance": provenance | {"dataset_sha256": None, "spec_sha256": "0" * 64},
        }
        with open(f"{self.folder}/artifacts/report.json", "w") as file:
            json.dump(report, file)
        say(type="finished", report="artifacts/report.json")

    def finish(self) -> None:
        """After `work` seconds; with a checkpoint where `key` is given and there is none yet."""
        self.phase("pruning")
        if "key" in self.metadata and not self.request["checkpoints"]:
            self.checkpoint()
        until = time.monotonic() + float(self.metadata.get("work", "0"))
        gate = self.metadata.get("gate")
        while time.monotonic() < until or (gate and not os.path.exists(gate)):
            say(type="progress", percent=50.0)
            time.sleep(0.02)
        self.end()

    def die(self) -> None:
        """By `signal` in `phase`; `once`: only an attempt that has no checkpoint."""
        if "once" in self.metadata:
            if self.request["checkpoints"]:
                self.finish()
                return
            self.checkpoint()
        for name in PHASES:
            self.phase(name)
            if name == self.metadata["phase"]:
                break
        print(f"dies {time.time()}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), int(self.metadata["signal"]))
        time.sleep(60)

    def devour(self) -> None:
        """Take memory until something ends it."""
        self.phase("pruning")
        held: list[bytes] = []
        while True:
            held.append(b"x" * (16 << 20))

    def freeze(self) -> None:
        """Stop for good, as a thread that waits for itself."""
        self.phase("pruning")
        print(f"dies {time.time()}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)

    def defy(self) -> None:
        """Ignore SIGTERM, with a grandchild that left the session and does so too."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        self.phase("pruning")
        while True:
            time.sleep(0.05)


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        engine = Engine(json.load(file))
    getattr(engine, engine.metadata["do"])()
