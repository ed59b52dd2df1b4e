"""What a network is: read, lifted, its channels labelled; nothing is trained or written."""

from __future__ import annotations

from pathlib import Path

from models.inspection import NetworkInspection
from worker.engine.graph.describe import describe_network
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network


def inspect_network(path: Path) -> NetworkInspection:
    """Raises `Failure` (NETWORK_REJECTED, UNSUPPORTED_OP …) when the file is not a network we can work on."""
    program = read_network(path)
    return describe_network(lift(program), "pt2", program.warnings)
