"""The readers in a process of their own, with its memory limited.

Prints a JSON line of counts after each second and each target; each finding goes into the folder as a file.
`input` in there is the file that was last read: when the process dies, the one it died of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.fuzz.found import FOUND
from tests.fuzz.fuzzer import Finding, Fuzzer
from tests.fuzz.guard import Guard, limit_memory
from tests.fuzz.planted import PLANTED
from tests.fuzz.targets import TARGETS
from worker.engine.ingest import trace, trial
from worker.engine.ingest.onnx import builder

SECONDS_BETWEEN_LINES = 1.0
SEEDS_IN_SHORT = 30
WARMED_UP = 10
"""Seeds that are read before anything is limited or watched."""
BY_NAME = {target.name: target for target in (*TARGETS, *PLANTED)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.process", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("targets", nargs="+", choices=list(BY_NAME))
    parser.add_argument("--seconds", type=float, help="of each target; without, a fixed number of files")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tempfile.tempdir = os.environ["TMPDIR"] = str(given.folder)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    _lower_budgets()
    guard = Guard(given.folder)
    for name in given.targets:
        _fuzz(name, given.folder, guard, given.seconds, given.seed)
    return 0


def _lower_budgets() -> None:
    """Of what a network is run with for real: a budget a hundredth as large is as good, and files are far more."""
    trial.MAXIMUM_MACS_TO_TRY /= 100
    trace.MAXIMUM_MACS /= 100
    trace.MAXIMUM_ACTIVATION_BYTES //= 100
    builder.MAXIMUM_CONSTANT_BYTES //= 100


def _fuzz(name: str, folder: Path, guard: Guard, seconds: float | None, seed: int) -> None:
    target = BY_NAME[name]
    seeds = target.seeds()
    fuzzer = Fuzzer(target, folder, guard, seed)
    if seconds is None:
        seeds = random.Random(seed).sample(seeds, min(SEEDS_IN_SHORT, len(seeds)))
    for content in seeds[:WARMED_UP]:
        fuzzer.path.write_bytes(content)
        target.read(fuzzer.path)  # what is imported late is there now; a seed that is refused is a mistake
    limit_memory()
    began = said = time.monotonic()
    fuzzer.plant([*seeds, *(found.make() for found in FOUND if found.target == name)])
    _say(fuzzer, time.monotonic() - began)
    left = None if seconds is None else seconds - (time.monotonic() - began)
    for finding in fuzzer.run(seconds=left, inputs=target.short if seconds is None else None):
        if finding is not None:
            _keep(folder, name, finding)
        if time.monotonic() > said + SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            _say(fuzzer, said - began)
    _say(fuzzer, time.monotonic() - began)


def _keep(folder: Path, name: str, finding: Finding) -> None:
    digest = hashlib.sha256(finding.content).hexdigest()[:12]
    (folder / f"{name}-{digest}").write_bytes(finding.content)


def _say(fuzzer: Fuzzer, seconds: float) -> None:
    covered, statements = fuzzer.statements()
    counts = {
        "target": fuzzer.target.name,
        "inputs": fuzzer.inputs,
        "accepted": fuzzer.accepted,
        "seconds": seconds,
        "covered": covered,
        "statements": statements,
        "findings": sorted(fuzzer.findings),
    }
    print(json.dumps(counts), flush=True)
