"""Each reader takes some hundred files that were changed at random, always the same; `make fuzz` takes far more."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from models.errors import Failure
from models.events import EngineEvent, FailedEvent, InspectedEvent
from tests.fuzz.__main__ import IN_MEMORY
from tests.fuzz.found import FOUND, Found
from tests.fuzz.fuzzer import why_not_told
from tests.fuzz.planted import MISTAKES
from tests.fuzz.targets import TARGETS

NAMES = [target.name for target in TARGETS]
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def counts() -> dict[str, Any]:
    """Of every target: all are read in one process, whose memory is limited and whose calls are watched."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=IN_MEMORY) as folder:
        command = [sys.executable, "-m", "tests.fuzz.process", folder, *MISTAKES, *NAMES]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = map(json.loads, done.stdout.splitlines())
        assert done.returncode == 0, f"it died of {Path(folder, 'input').read_bytes()!r}: {done.stderr[-2000:]}"
        return {line["target"]: line for line in lines}


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_changed_a_reader_returns_or_refuses(name: str, counts: dict[str, Any]) -> None:
    assert counts[name]["findings"] == []
    assert 0 < counts[name]["accepted"] < counts[name]["inputs"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_that_was_planted_is_found(name: str, counts: dict[str, Any]) -> None:
    says, found = MISTAKES[name][1], counts[name]["findings"]
    assert any(says in problem for problem in found) if says else found == []


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.name)
def test_what_was_found_once_is_refused_or_read(found: Found, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(found.make())
    target = next(target for target in TARGETS if target.name == found.target)
    if found.says is None:
        events: list[EngineEvent] = [InspectedEvent(inspection=each) for each in target.read(path)]
    else:
        with pytest.raises(Failure, match=found.says) as caught:
            target.read(path)
        events = [FailedEvent(error=caught.value.as_error())]
    assert events
    for event in events:
        assert why_not_told(event) is None
