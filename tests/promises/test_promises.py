"""A sample of each row of the table that `make promises` prints in full, but those of the two files beside this one."""

from __future__ import annotations

import pytest

from tests.promises.table import CROWDS, OUTAGES, ROWS, Row

HERE = [row for row in ROWS if row.short and row not in (*CROWDS, *OUTAGES)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
def test_the_promise_holds(row: Row) -> None:
    if (hindrance := row.hindrance()) is not None:
        pytest.skip(hindrance)
    outcome = row.measure(row.short)
    assert outcome.holds, outcome
