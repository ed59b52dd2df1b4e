"""Networks and jobs that ask for too much, on the real engine: refused or ended with the code that says of what."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from models.events import ENGINE_EVENT, FailedEvent
from models.messages import CompressRequest, NetworkFile
from models.spec import Spec
from models.tables import Network
from tests.e2e.jobs import write_network
from tests.networks import export_pt2
from tests.worker.fleet import Fleet, until
from worker import sandbox
from worker.profiles import BASE
from worker.sandbox import Limits, Sandbox


def _wide(folder: Path, size: int) -> bytes:
    """A tiny file with an image so large that its first convolution gives half a kibibyte for each pixel."""
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.ReLU())
    path = folder / "wide.pt2"
    export_pt2(module, (torch.zeros(2, 3, size, size),), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("size", "code", "words"),
    [(1200, "out_of_memory", "more memory than it may"), (8000, "network_rejected", "need more than 16 GiB")],
)
def test_a_network_that_needs_too_much_memory_is_rejected_at_once(
    fleet: Fleet, tmp_path: Path, size: int, code: str, words: str
) -> None:
    fleet.start("control", program="worker", MODELPRESS_ENGINE_MEMORY_BYTES=str(600 << 20))
    network_id = fleet.upload(Network, _wide(tmp_path, size))
    fleet.nudge_inspection()
    until(lambda: fleet.uploaded(Network, network_id).status != "inspecting", "the inspection", 120.0)
    row = fleet.uploaded(Network, network_id)
    assert row.status == "rejected"
    assert row.error is not None
    assert (row.error["code"], row.attempt) == (code, 1)
    assert words in row.error["message"]


def test_a_job_that_writes_more_than_it_may_fails_with_a_full_disk(tmp_path: Path) -> None:
    root = tmp_path / "run"
    (root / "job").mkdir(parents=True)
    request = CompressRequest(
        network=NetworkFile(path=write_network("densenet", root)),
        spec=Spec.model_validate({"model": "net", "steps": [{"step": "prune", "amount": {"channels": 0.5}}]}),
        folder=root / "job",
    )
    (root / "request.json").write_text(request.model_dump_json())
    command = [sys.executable, "-P", "-m", "worker.engine", str(root / "request.json")]
    confined = Sandbox(BASE, root, (root / "job",), Limits(cpu_seconds=300, disk_bytes=16 << 10))
    output, errors = sandbox.start(command, {"TMPDIR": str(root / "job")}, confined).communicate()
    last = ENGINE_EVENT.validate_json(output.splitlines()[-1])
    assert isinstance(last, FailedEvent), errors
    assert last.error.code == "disk_full", errors
