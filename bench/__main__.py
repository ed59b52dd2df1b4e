"""`make bench`: one table, measured in one run against a service started for it."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.job import starts, whole_jobs
from bench.row import Row
from bench.upload import uploads
from deploy.temporary import temporary_service
from modelpress import Client

WIDTH = 110
"""Characters, so that no row breaks where the terminal does not say its width."""


def main() -> int:
    torch.set_num_threads(1)
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as scratch:
        folder = Path(scratch)
        with temporary_service(folder / "service") as url, Client(url) as client:
            for name, measure in (("uploads", uploads), ("starts", starts), ("whole jobs", whole_jobs)):
                console.print(f"measuring {name} …")
                rows += measure(client, folder)
    table = Table(title=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    table.add_column("")
    for heading in ("measured", "unit", "against the row below"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(row.what, f"{row.value:,.1f}", row.unit, "" if row.ratio is None else f"{row.ratio:.2f}x")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
