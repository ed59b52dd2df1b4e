"""`make bench`: what the service costs, measured against one started for it, its training beside a plain
loop, and its pruning beside Torch-Pruning's.

`python -m bench networks --jobs 2` measures one part alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.criteria import criteria
from bench.int8 import int8
from bench.job import starts, whole_jobs
from bench.large import large
from bench.networks import networks
from bench.row import Row
from bench.sizes import sizes
from bench.training import training
from bench.upload import uploads
from deploy.temporary import temporary_service
from modelpress import Client

WIDTH = 110
"""Characters, so that no row breaks where the terminal does not say its width."""


PARTS = ("service", "training", "criteria", "networks", "sizes", "int8")
LARGE = "large"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; without any, all")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    drawn = "architectures in `networks`, drawn at random (24); `all` take hours"
    parser.add_argument("--drawn", type=lambda text: None if text == "all" else int(text), default=24, help=drawn)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of the network in `large`, which only runs named")
    chosen = parser.parse_args()
    if unknown := sorted({*chosen.parts} - {*PARTS, LARGE}):
        parser.error(f"there is no part {', '.join(unknown)}; choose from {', '.join((*PARTS, LARGE))}")
    torch.set_num_threads(1)
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    wanted = chosen.parts or PARTS
    if "service" in wanted:
        service(console)
    if "training" in wanted:
        training(console)
    if "criteria" in wanted:
        criteria(console)
    if "networks" in wanted:
        networks(console, chosen.jobs, chosen.drawn)
    if "sizes" in wanted:
        sizes(console)
    if "int8" in wanted:
        int8(console)
    if LARGE in wanted:
        _print(console, large(chosen.gigabytes), "times the network")
    return 0


def service(console: Console) -> None:
    """Print one table, measured in one run."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as scratch:
        folder = Path(scratch)
        with temporary_service(folder / "service") as url, Client(url) as client:
            for name, measure in (("uploads", uploads), ("starts", starts), ("whole jobs", whole_jobs)):
                console.print(f"measuring {name} …")
                rows += measure(client, folder)
    _print(console, rows, "against the row below")


def _print(console: Console, rows: list[Row], ratio: str) -> None:
    table = Table(title=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    table.add_column("")
    for heading in ("measured", "unit", ratio):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.what, f"{row.value:,.1f}", row.unit, "" if row.ratio is None else f"{row.ratio:.2f}x")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
