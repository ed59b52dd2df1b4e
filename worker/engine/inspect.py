"""What a network is: read, lifted, its channels labelled; nothing is trained or written."""

from __future__ import annotations

from pathlib import Path

from models.inspection import NetworkInspection
from models.reading import NOTHING_SAID, ReadOptions
from worker.engine.graph.describe import describe_network
from worker.engine.graph.lift import lift
from worker.engine.ingest.read import read_network


def inspect_network(path: Path, options: ReadOptions = NOTHING_SAID) -> NetworkInspection:
    """Raises `Failure` (NETWORK_REJECTED, UNSUPPORTED_OP …) when the file is not a network we can work on."""
    program = read_network(path, options)
    return describe_network(lift(program), program.format, program.warnings)
