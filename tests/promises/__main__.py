"""`make promises`: bring every fault about, again and again, and print what became of the jobs.

`--short` takes the few injections that the tests take; `--only P8` takes the rows of one promise.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time

from rich.console import Console
from rich.table import Table

from tests.promises.outcome import Outcome
from tests.promises.table import ROWS, Row

WIDTH = 150


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.promises", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the few injections that the tests take")
    parser.add_argument("--share", type=float, default=1.0, help="of the full number of injections, at least one")
    parser.add_argument("--only", nargs="*", default=[], help="promises, as P8")
    chosen = parser.parse_args()
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    found: list[tuple[Row, Outcome]] = []
    for row in ROWS:
        count = row.short if chosen.short else max(1, round(row.full * chosen.share))
        if count == 0 or (chosen.only and row.promise not in chosen.only):
            continue
        if (hindrance := row.hindrance()) is not None:
            console.print(f"{row.name}: not run, {hindrance}", style="dim")
            continue
        began = time.monotonic()
        try:
            outcome = row.measure(count)
        except Exception as error:  # whatever became of one row, the others are told
            outcome = Outcome(0, broken=[f"{type(error).__name__}: {error}"[:2000]])
        found.append((row, outcome))
        console.print(f"{row.name}: {time.monotonic() - began:.0f} s", style="dim")
    console.print(_table(found))
    for row, outcome in found:
        for problem in sorted({*outcome.broken, *outcome.late})[:10]:
            console.print(f"{row.name}: {problem}", style="red")
    return 0 if all(outcome.holds and not outcome.late for _, outcome in found) else 1


def _table(found: list[tuple[Row, Outcome]]) -> Table:
    table = Table(title=f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    for heading in ("promise", "fault", "database"):
        table.add_column(heading)
    for heading in ("N", "clocks", "lost", "duplicated", "p50 s", "p99 s"):
        table.add_column(heading, justify="right")
    table.add_column("the seconds are")
    table.add_column("holds")
    for row, outcome in found:
        times = ["" if (value := outcome.percentile(p)) is None else f"{value:.3f}" for p in (0.5, 0.99)]
        numbers = [str(outcome.injections), f"x {row.scale:g}", str(outcome.lost), str(outcome.duplicated), *times]
        table.add_row(
            row.promise,
            row.fault,
            "PostgreSQL" if row.on_postgres else "SQLite",
            *numbers,
            row.timed,
            "NO" if not outcome.holds else "late" if outcome.late else "yes",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
