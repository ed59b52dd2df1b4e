"""A sample of each row of the table that `make promises` prints in full."""

from __future__ import annotations

import os

import pytest

from tests.promises.soak import soak
from tests.promises.table import CROWDS, ROWS, Row


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.short and row not in CROWDS], ids=lambda row: row.name)
def test_the_promise_holds(row: Row) -> None:
    if (row.needs_root or row.disk_megabytes is not None) and os.geteuid() != 0:
        pytest.skip("only root may mount a small disk, or name a host")
    outcome = row.measure(row.short)
    assert outcome.holds, outcome


@pytest.mark.slow
def test_random_faults_lose_no_job_and_do_none_twice() -> None:
    ran = soak(20, seed=1)
    assert ran.outcome.holds, ran.outcome
    assert ran.seen
