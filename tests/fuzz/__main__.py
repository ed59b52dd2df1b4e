"""`make fuzz`: give every reader changed files for some minutes, and print what was found.

`--only onnx npz` takes some targets; `--jobs 2` two at a time; files that something was found with are in `--keep`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.fuzz.targets import TARGETS

IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Every input is a file that is written anew."""
ENDINGS = {signal.SIGPROF: "it computes for longer than is allowed"}


@dataclass
class Row:
    """Of one target, added up over its processes."""

    target: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    covered: int = 0
    statements: int = 0
    findings: set[str] = field(default_factory=set)

    def add(self, counts: dict[str, Any]) -> None:
        self.inputs += counts["inputs"]
        self.accepted += counts["accepted"]
        self.seconds += counts["seconds"]
        self.covered, self.statements = max(self.covered, counts["covered"]), counts["statements"]
        self.findings |= set(counts["findings"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[target.name for target in TARGETS])
    parser.add_argument("--minutes", type=_minutes, default=10, help="of each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument("--seed", type=int, default=0, help="the same seed changes the same seeds in the same way")
    parser.add_argument("--keep", type=Path, default=Path("var/fuzz"))
    given = parser.parse_args()
    if unknown := set(given.only) - {target.name for target in TARGETS}:
        parser.error(f"no target is called {' or '.join(sorted(unknown))}")
    given.keep.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, width=max(120, Console().width))

    def taken(name: str) -> Row:
        row = fuzz(name, 60 * given.minutes, given.seed, given.keep)
        console.print(f"{name}: {row.inputs:,} files, {len(row.findings)} findings", style="dim")
        return row

    with ThreadPoolExecutor(given.jobs) as pool:
        rows = list(pool.map(taken, given.only))
    console.print(_table(rows))
    for row in rows:
        for problem in sorted(row.findings):
            console.print(f"{row.target}: {problem}", style="red", markup=False)
    return 1 if any(row.findings for row in rows) else 0


def _minutes(given: str) -> float:
    if not (minutes := float(given)) > 0:
        raise argparse.ArgumentTypeError("takes more than none")
    return minutes


def fuzz(name: str, seconds: float, seed: int, keep: Path) -> Row:
    """A process that dies is a finding; another then goes on for the rest of the time."""
    row, end = Row(name), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=IN_MEMORY) as folder:
            command = [sys.executable, "-m", "tests.fuzz.process", folder, name]
            command += ["--seconds", str(left), "--seed", str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            said = done.stdout.splitlines()
            if said:
                row.add(json.loads(said[-1]))
            for found in Path(folder).glob(f"{name}-*"):
                (keep / found.name).write_bytes(found.read_bytes())
            if done.returncode == 0:
                break
            if not said:
                raise RuntimeError(f"{name}: nothing was read. {done.stderr[-2000:]}")
            number = -done.returncode
            known = number in set(signal.Signals)
            how = ENDINGS.get(signal.Signals(number), f"it ends by {signal.Signals(number).name}") if known else "?"
            row.findings.add(f"{how}; {done.stderr.strip().splitlines()[-1:]}")
            (keep / f"{name}-died-{seed}").write_bytes((Path(folder) / "input").read_bytes())
        seed += 1
    return row


def _table(rows: list[Row]) -> Table:
    table = Table(title=f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    table.add_column("target")
    for heading in ("inputs", "inputs/s", "accepted", "statements of its reader", "findings"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.target,
            f"{row.inputs:,}",
            f"{row.inputs / row.seconds:,.0f}",
            f"{row.accepted / row.inputs:.0%}",
            f"{row.covered} of {row.statements} ({row.covered / row.statements:.0%})",
            str(len(row.findings)),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
