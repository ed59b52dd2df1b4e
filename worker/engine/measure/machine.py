"""What this CPU can do, as far as it decides how fast a file runs."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

_EXACT = ("amx_int8", "avx512_vnni", "avx_vnni", "asimddp", "asimd")
_EXTENSIONS = ("amx_int8", "avx512_vnni", "avx_vnni", "avx512f", "avx2", "avx", "sse4_2", "asimddp", "asimd")
"""Widest first. Without one of the first three (or asimddp) 8-bit multiplications are slower and may saturate."""


@cache
def instruction_set() -> str:
    """The widest vector extension of this CPU, or its architecture where that cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    flags = {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}
    return next((extension for extension in _EXTENSIONS if extension in flags), platform.machine())


def signed_products_saturate() -> bool:
    """Whether runtimes sum products of unsigned and signed 8-bit integers in 16 bits here, and clip them."""
    return instruction_set() not in _EXACT


def load_average() -> float | None:
    """Processes that ran or waited to run on the whole machine, over the last minute; `None` where it is not told."""
    try:
        return float(Path("/proc/loadavg").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def usable_cpus() -> int:
    """How many CPUs this process may run on."""
    return len(os.sched_getaffinity(0))
