from __future__ import annotations

import os

import pytest

from tests.architectures.table import ARCHITECTURES, FUSED, SAMPLE
from tests.engine.conformance.conform import conform

TAKEN = tuple(ARCHITECTURES) if os.environ.get("MODELPRESS_SWEEPS") == "full" else SAMPLE


@pytest.mark.parametrize("name", TAKEN)
def test_an_architecture_goes_through_the_whole_engine(name: str) -> None:
    row = conform(name, ARCHITECTURES[name])
    assert row.problems(name in FUSED) == []
