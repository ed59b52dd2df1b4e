"""What the machine has."""

from __future__ import annotations

import os
from pathlib import Path


def memory_bytes() -> int:
    """Of this container, or of the host where nothing limits it."""
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return host
    return host if limit == "max" else min(host, int(limit))
