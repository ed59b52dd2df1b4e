"""`make conformance`: take every architecture through the engine, and print what was found.

`--only 'resnet*' unet` takes some; `--reasons` says why parameters stay. Each network has a process of its own, so
one that hangs or crashes stops nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.architectures.table import ARCHITECTURES, FUSED
from tests.engine.conformance.conform import TARGET_LEFT, Row, conform, reached

CAP_SECONDS = 300
WIDTH = 170
OUTPUT = "feeds the output of the network"
_START = multiprocessing.get_context("fork")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.conformance", description=__doc__)
    parser.add_argument("--only", nargs="*", default=["*"], help="names, or patterns of them")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--seconds", type=float, default=CAP_SECONDS, help="a network that takes longer is stopped")
    parser.add_argument("--reasons", action="store_true", help="why parameters stay whole, network by network")
    chosen = parser.parse_args()
    names = [name for name in ARCHITECTURES if any(fnmatch(name, pattern) for pattern in chosen.only)]
    if not names:
        parser.error(f"no architecture is called {' or '.join(chosen.only)}")
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    rows = []
    for row in _rows(names, chosen.jobs, chosen.seconds):
        rows.append(row)
        problems = "; ".join(row.problems(row.name in FUSED))
        console.print(
            f"{row.name}: {escape(problems) or 'ok'}, {row.seconds:.1f} s", style="red" if problems else "dim"
        )
        for reason, values in row.reasons.items() if chosen.reasons else ():
            console.print(f"    {values} values: {escape(reason)}", style="dim")
    console.print(_table(rows))
    wrong = [row for row in rows if row.problems(row.name in FUSED)]
    small, count = reached(rows)
    console.print(
        f"{count} networks, {count - len(wrong)} hold; at most {TARGET_LEFT:.0%} of the parameters left on "
        f"{small} ({small / count:.0%}); {sum(row.seconds for row in rows):.0f} s"
    )
    return 1 if wrong else 0


def _rows(names: list[str], jobs: int, seconds: float) -> Iterator[Row]:
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda name: _alone(name, seconds), names)


def _alone(name: str, seconds: float) -> Row:
    """One network in a process of its own, which ends with it or after `seconds`."""
    receive, send = _START.Pipe(duplex=False)
    process = _START.Process(target=_child, args=(name, send))
    process.start()
    send.close()
    try:
        row: Row = receive.recv() if receive.poll(seconds) else Row(name, seconds=seconds, broken="took too long")
    except EOFError:
        process.join()
        row = Row(name, broken=f"its process ended with {process.exitcode}")
    process.kill()
    process.join()
    return row


def _child(name: str, send: multiprocessing.connection.Connection) -> None:
    send.send(conform(name, ARCHITECTURES[name]))


def _table(rows: list[Row]) -> Table:
    table = Table(title="half of the channels of every group cut; differences are relative")
    table.add_column("network", no_wrap=True, min_width=26)
    for heading in ("lifted", "left", "prunable", "mask", "original", "effect", "trains", ".pt2", "ONNX", "s"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=6)
    table.add_column("what stays besides outputs, and why", overflow="ellipsis", no_wrap=True, max_width=WIDTH - 120)
    for row in rows:
        table.add_row(
            row.name,
            _same(row.lift_difference),
            _share(row.parameters_left),
            _share(row.prunable_share),
            _same(row.mask_difference),
            _same(row.original_difference),
            _same(row.effect),
            "" if not row.losses else "no" if any("train" in problem for problem in row.problems()) else "yes",
            _same(row.pt2_difference),
            "none" if row.onnx_refused else _same(row.onnx_difference),
            f"{row.seconds:.1f}",
            escape(row.broken or ", ".join(reason for reason in row.reasons if reason != OUTPUT)),
            style="red" if row.problems(row.name in FUSED) else None,
        )
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _same(value: float | None) -> str:
    return "" if value is None else "=" if value == 0 else f"{value:.0e}"


if __name__ == "__main__":
    sys.exit(main())
