"""The rows about outages of api, broker, database and workers; apart, so that two cores share the work."""

from __future__ import annotations

import pytest

from tests.promises.soak import soak
from tests.promises.table import OUTAGES, Row


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", [row for row in OUTAGES if row.short], ids=lambda row: row.name)
def test_the_promise_holds_through_an_outage(row: Row) -> None:
    outcome = row.measure(row.short)
    assert outcome.holds, outcome


@pytest.mark.slow
def test_random_faults_lose_no_job_and_do_none_twice() -> None:
    ran = soak(20, seed=1)
    assert ran.outcome.holds, ran.outcome
    assert ran.seen
